"""Prediction of local files: what is read again before it counts as unreadable."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from common.data import reading
from serve.batch.local import predict_local
from serve.batch.outputs.format import OutputOptions
from serve.batch.result import Legend, Result
from serve.errors import RequestError


def test_share_that_drops_out_for_a_moment_costs_no_photo(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 5, 3), np.uint8))
    answers, read = [False, False, True, True], Path.read_bytes

    def read_bytes(path):
        if not (answers and answers.pop(0)):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(reading, "PAUSES_S", (0.0,) * 3)
    legend = Legend(("__bg__", "crack"), ((0, 0, 0), (220, 20, 60)))
    worker = SimpleNamespace(
        best_thresholds={},
        left_out="",
        settings=SimpleNamespace(strict=False),
        legend=legend,
        options=OutputOptions,
        results=lambda photos, needs: [
            Result(photo.path, photo.name, np.zeros(photo.image.shape[:2], np.uint8), legend) for photo in photos
        ],
    )
    written = predict_local(worker, tmp_path, tmp_path / "out", draw=False)
    assert [json.loads(path.read_text())["size"] for path in written] == [{"height": 4, "width": 5}] * 2
    assert "Its disk seems to be away" in capsys.readouterr().err

    monkeypatch.setattr("serve.batch.local.only_this_one", lambda _: False)
    with pytest.raises(RequestError, match=r"a\.png: Input/output error\. Its disk is away\. 0 of 2 are predicted\.$"):
        predict_local(worker, tmp_path, tmp_path / "away", draw=False)

    monkeypatch.undo()
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"1 of 2 images could not be read, the others are predicted:\n.*b\.png"):
        predict_local(worker, tmp_path, tmp_path / "again", draw=False)
