"""The baseline of the training benchmark computes what ours does: else their times could not be compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import train as benchmark
from benchmarks.train import case_settings, difference, make_batch, our_step, plain_step
from train.settings.training import TrainSettings

CPU = torch.device("cpu")


def small(way: str) -> TrainSettings:
    return case_settings("mit_b0:64x2", way).with_overrides(
        ["model.decoder_channels=16", "model.attention_channels=16"]
    )


def losses(step, settings: TrainSettings, iterations: int = 3) -> list[list[float]]:
    return [[float(loss) for loss in step(make_batch(settings, CPU, index), index)] for index in range(iterations)]


def test_plain_and_ours_have_equal_losses() -> None:
    settings = small("ours")
    ours = losses(our_step(settings, CPU), settings)
    for way in ("plain", "encoder", "network"):
        plain = losses(plain_step(settings, CPU, way), settings)
        # The first iteration by rounding alone; then Adam has made whole steps of rounded gradients near zero.
        assert difference(ours[:1], plain[:1]) < 1e-5, way
        assert difference(ours, plain) < 2e-2, way


def test_bfloat16_is_near() -> None:
    settings = small("bfloat16")
    ours = losses(our_step(settings, CPU), settings, 1)
    plain = losses(plain_step(settings, CPU, "plain"), settings, 1)
    assert 0 < difference(ours, plain) < 2e-2


def test_a_case_prints_a_line_for_each_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    seconds = {"plain": 2.0, "ours": 1.0}

    def child(given, case: str, way: str):
        return {
            "seconds": seconds[way],
            "processor": 3 * seconds[way],
            "memory": 100 * seconds[way],
            "losses": [[1.0, 2.0]],
        }

    monkeypatch.setattr(benchmark, "run_child", child)
    assert benchmark.main(["--cases", "mit_b0:256x2", "--ways", "plain", "ours", "--repeats", "1"]) == 0
    [plain, ours] = capsys.readouterr().out.splitlines()[2:]
    assert plain.split()[:4] == ["mit_b0:256x2", "plain", "2.000", "1.00x"]
    assert ours.split()[1:] == ["ours", "1.000", "2.00x", "3.000", "2.00x", "100", "50%", "0.0e+00"]


def test_loading_reads_real_files(tmp_path) -> None:
    settings = small("ours")
    batches = benchmark.photo_batches(tmp_path, settings, 2)
    images, labels, target, *_ = batches[1]
    assert images.shape == target.shape == (2, 3, 64, 64)
    assert np.isin(labels.numpy(), (0, 1, 2)).all()
