"""`python -m serve` as a user types it: no instance, no network, no token."""

import argparse
import csv
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.__main__ import DEVICES, RUNTIMES, build_parser, host_of, main, parse_arguments, sdk_arguments
from tests.full_disk import SmallDisk

ROOT = Path(__file__).resolve().parents[2]
TOO_LONG = "x" * 3000
"""No file can have this name."""


def environment(home: Path) -> dict[str, str]:
    """Nothing of this process's environment but what Python needs, and no way to the network."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    cache = str(home / "cache")
    return kept | proxies | {"HOME": str(home), "OMP_NUM_THREADS": "1", "SMART_CACHE_CONTAINER_DIR": cache}


def test_predict_writes_annotation_and_drawn_photo_without_an_instance(checkpoint, photo, image, tmp_path):
    from serve.model.deployment import Deployment
    from serve.model.settings import ServeSettings

    output = tmp_path / "out"
    command = [sys.executable, "-m", "serve", "predict", "--model", str(checkpoint), str(photo), "--draw"]
    done = subprocess.run(
        [*command, "--output", str(output), "--settings", "stride=64", "batch_size=2"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in output.iterdir()) == ["photo.png.json", "photo.png.png"]
    annotation = json.loads((output / "photo.png.json").read_text(encoding="utf-8"))
    assert annotation["size"] == {"height": 90, "width": 140}
    deployment = Deployment.from_file(checkpoint, "cpu")
    [found] = deployment.predict([image], ServeSettings(stride=(64, 64), batch_size=2))
    mask = found.labels
    names = [deployment.classes[index] for index in np.unique(mask)]
    assert [label["classTitle"] for label in annotation["objects"]] == names
    drawn = np.asarray(Image.open(output / "photo.png.png"))
    assert (drawn[mask != 0] != image[mask != 0]).any(axis=-1).mean() > 0.9
    assert f"{photo} -> {output / 'photo.png.json'}" in done.stdout


def test_folder_is_predicted_image_by_image_and_broken_ones_are_named(running, image, tmp_path, capsys):
    from serve.errors import RequestError

    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(image).save(folder / "A.PNG")
    (folder / "b.jpg").write_bytes(b"broken")
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(image[:64]).save(folder / "c.png", exif=exif)
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    Image.fromarray(image).save(folder / "d.gif")
    for name in ("night", ".cache"):
        (folder / name).mkdir()
    with pytest.raises(RequestError, match="1 of 4 images could not be read(.|\n)*b.jpg"):
        running.server.predict_local(str(folder), str(tmp_path / "out"), {}, draw=False)
    written = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out" / "photos").iterdir()}
    assert sorted(written) == ["A.PNG.json", "c.png.json", "d.gif.json"]
    assert written["c.png.json"]["size"] == {"height": 140, "width": 64}, "EXIF orientation"
    told = capsys.readouterr().out
    assert "[4/4]" in told
    assert f"Passed over in {folder}: 1 subfolder (night), 1 file that is no image (notes.txt).\n" in told


def test_formats_are_written_each_into_its_folder(running, photo, image, checkpoint, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(image).save(folder / name)
    output, device = tmp_path / "out", ["--device", "cpu"]
    words = ["--format", "masks,csv,geojson", "--mm-per-pixel", "0.5", "--tolerance", "0", "--output", str(output)]
    assert main(["predict", str(folder), "--model", str(checkpoint), *words, *device]) == 0
    told = capsys.readouterr().out
    written = sorted(path.relative_to(output / "photos").as_posix() for path in output.rglob("*.*"))
    assert written == [
        "csv/classes.csv", "csv/components.csv", "geojson/a.jpg.geojson", "geojson/a.png.geojson",
        "masks/a.jpg.png", "masks/a.png.png", "masks/classes.json",
    ]  # fmt: skip
    with (output / "photos/csv/classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mask = np.asarray(Image.open(output / "photos/masks/a.png.png"))
    areas = {row["class"]: int(row["area_px"]) for row in rows if row["photo"] == "a.png"}
    assert areas == {"crack": (mask == 1).sum(), "stain": (mask == 2).sum()}
    assert {row["mm_per_pixel"] for row in rows} == {"0.5"}
    share = f"crack {(mask == 1).mean():.2%}"
    assert re.search(rf"\[2/2\] .*a\.png -> .*/photos/masks/a\.png\.png: .*{share}", told)
    assert re.search(r"2 photos predicted in .* s \(.* photos/s.*\n  crack: in 2 of 2 photos, ", told)
    assert f"\nWritten: {output / 'photos'}\n" in told
    assert "{" not in told


def test_project_of_an_instance_is_predicted_with_a_line_an_image(instance, api, image, checkpoint, tmp_path):
    project = api.project.create(instance.workspace_id, "photos")
    dataset = api.dataset.create(project.id, "day")
    api.image.upload_nps(dataset.id, ["a.png", "b.png"], [image, image[:70]])
    known = {"SERVER_ADDRESS": instance.address, "API_TOKEN": instance.token, "TEAM_ID": str(instance.team_id)}
    done = subprocess.run(
        [sys.executable, "-m", "serve", "predict", "--model", str(checkpoint), "--project_id", str(project.id),
         "--output", "out", "--device", "cpu"],
        cwd=tmp_path,
        env=environment(tmp_path)
        | known
        | {"PYTHONPATH": str(ROOT), "SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK": "true", "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "day").iterdir()) == ["a.png.json", "b.png.json"]
    for name in ("a.png", "b.png"):
        assert re.search(rf"^{name}: crack \d+\.\d\d%, stain \d+\.\d\d%$", done.stdout, re.MULTILINE)
    assert re.search(r"^Predicted in .* s\. Written: out$", done.stdout, re.MULTILINE)
    assert '{"' not in done.stdout + done.stderr


def test_folder_without_images_says_what_is_there(running, tmp_path):
    from serve.errors import RequestError

    for n in range(7):
        (tmp_path / f"day{n}").mkdir()
    with pytest.raises(RequestError, match=r"no image in .* Passed over in .*: 7 subfolders \(day0, .*day4, …\)"):
        running.server.predict_local(str(tmp_path), str(tmp_path / "out"), {}, draw=False)


def test_strict_ends_at_the_first_image_that_cannot_be_read(running, image, tmp_path):
    from common.data.images import ImageError

    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"broken")
    Image.fromarray(image).save(folder / "b.png")
    with pytest.raises(ImageError, match="a.jpg"):
        running.server.predict_local(str(folder), str(tmp_path / "out"), {"strict": True}, draw=False)
    assert list((tmp_path / "out" / "photos").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: --model"),
        (["train", "--model", "MODEL"], "invalid choice: 'train'"),
        (["predict", "PHOTO"], "required: --model"),
        (["predict", "--model", "MODEL"], "needs an image or a folder"),
        (["predict", "nowhere.jpg", "--model", "MODEL"], "no image or folder at nowhere.jpg"),
        (["predict", "PHOTO", "--model", "nowhere.pth"], "no checkpoint at nowhere.pth.*SERVER_ADDRESS"),
        (["predict", "--image_id", "5", "--model", "MODEL"], "needs SERVER_ADDRESS, API_TOKEN, TEAM_ID"),
        (["deploy", "PHOTO", "--model", "MODEL"], "deploy takes no input"),
        (["predict", "PHOTO", "--model", TOO_LONG], "there is no checkpoint at xxx"),
        (["predict", TOO_LONG, "--model", "MODEL"], "no image or folder at xxx"),
        (["predict", "--image_id", "5", "--model", "MODEL", "--format", "masks"], "--format is for images .* on this"),
        (["export", "--model", TOO_LONG], "export needs a checkpoint on this machine"),
        (["deploy", "--model", "MODEL", "--port", "99999"], "whole number from 0 to 65535"),
        (["deploy", "--model", "MODEL", "--port=-1"], "whole number from 0 to 65535"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_loaded(words, message, checkpoint, photo, no_instance, capsys):
    words = [{"MODEL": str(checkpoint), "PHOTO": str(photo)}.get(word, word) for word in words]
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(words)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_errors_of_the_user_end_with_a_sentence_and_status_2(
    running, photo, tmp_path, no_instance, monkeypatch, capsys
):
    path = tmp_path / "model.pth"
    path.write_bytes(b"not a checkpoint")
    monkeypatch.setattr(sys, "argv", ["serve"])
    assert main(["predict", str(photo), "--model", str(path), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert "Traceback" not in error
    assert str(path) in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "mask"], "Unknown format 'mask': did you mean 'masks'"),
        (["--format", ","], "at least one of masks, supervisely"),
        (["--format", "csv", "--mm-per-pixel", "0"], "mm_per_pixel must be millimetres above 0.* Received: 0"),
        (["--format", "csv", "--mm-per-pixel", "wide"], "mm_per_pixel must be millimetres above 0"),
        (["--format", "yolo", "--tolerance", "-1"], "tolerance must be pixels from 0 to 100"),
    ],
)
def test_mistakes_about_outputs_are_told_before_the_model_is_read(words, message, photo, tmp_path, no_instance, capsys):
    path = tmp_path / "model.pth"
    path.write_bytes(b"not a checkpoint")
    assert main(["predict", str(photo), "--model", str(path), "--device", "cpu", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("place", [["PHOTO"], ["--image_id", "5"]], ids=["here", "on an instance"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["FILE"], "cannot be read"),
        (["stride"], "NAME=VALUE"),
        (["stride=[64"], "stride cannot be read as YAML"),
        (["strid=64"], "did you mean 'stride'"),
        (["thresholds={crack: 2}"], "probabilities from 0 to 1"),
        (["window=&a [*a]"], "anchors"),
    ],
)
def test_mistakes_in_settings_are_sentences(words, message, place, checkpoint, photo, no_instance, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve"])
    for name in ("SERVER_ADDRESS", "API_TOKEN", "TEAM_ID"):
        monkeypatch.setenv(name, "1")
    words = ["nowhere.yaml" if word == "FILE" else word for word in words]
    place = [str(photo) if word == "PHOTO" else word for word in place]
    assert main(["predict", *place, "--model", str(checkpoint), "--device", "cpu", "--settings", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_place_for_results_is_looked_at_before_the_model_is(photo, tmp_path, no_instance, capsys):
    model = tmp_path / "model.pth"
    model.write_bytes(b"not a checkpoint")
    assert main(["predict", str(photo), "--model", str(model), "--device", "cpu", "--output", str(model / "out")]) == 2
    error = capsys.readouterr().err
    assert "cannot be made: Not a directory" in error and "--output" in error


def test_full_disk_is_told_and_leaves_no_half_of_a_result(
    checkpoint, photo, tmp_path, no_instance, monkeypatch, capsys
):
    SmallDisk(monkeypatch, tmp_path, capacity=20)
    words = ["predict", str(photo), "--model", str(checkpoint), "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "the disk is full" in error and "Make room" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_address_that_is_taken_is_told_before_the_model_is_loaded(tmp_path, no_instance, monkeypatch, capsys):
    model = tmp_path / "model.pth"
    model.write_bytes(b"not a checkpoint")
    monkeypatch.setattr(sys, "argv", ["serve"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["deploy", "--model", str(model), "--device", "cpu", "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1:{port}: address already in use" in error and "--port" in error


@pytest.mark.parametrize(
    ("token", "words", "host", "said"),
    [
        (None, [], "127.0.0.1", "Only this machine reaches it. Set it, or give --host"),
        (None, ["--host", "localhost"], "localhost", "Only this machine reaches it."),
        (None, ["--host", "0.0.0.0"], "0.0.0.0", "Whoever reaches 0.0.0.0 may use it."),
        ("a token of nobody's", [], "0.0.0.0", None),
        ("a token of nobody's", ["--host", "127.0.0.1"], "127.0.0.1", None),
    ],
)
def test_service_without_a_token_answers_this_machine_only_and_says_so(
    token, words, host, said, checkpoint, no_instance, caplog
):
    from supervisely import logger

    from serve.limits import Limits

    args = parse_arguments(["deploy", "--model", str(checkpoint), "--port", "8123", *words])
    logger.addHandler(caplog.handler)
    try:
        assert host_of(args, replace(Limits(), api_token=token)) == host
    finally:
        logger.removeHandler(caplog.handler)
    lines = [record.getMessage() for record in caplog.records if "HRDA_API_TOKEN" in record.getMessage()]
    assert len(lines) == (said is not None)
    for line in lines:
        assert f"{host}:8123 asks for no token" in line and said in line
        assert ("give --host" in line) == (not words)


def test_help_does_not_import_the_sdk_or_torch():
    code = (
        "import sys, serve.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('supervisely', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--settings" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_predict_of_a_local_photo_imports_no_sdk_web_server_compiler_or_measures(checkpoint, photo, tmp_path):
    words = ["predict", str(photo), "--model", str(checkpoint), "--device", "cpu", "--output", str(tmp_path / "out")]
    code = (
        "import sys, serve.__main__ as m\n"
        f"assert m.main({words!r}) == 0\n"
        "names = ('fastapi', 'kornia', 'skimage', 'supervisely', 'supervisely.nn.inference', 'sympy', 'timm',"
        " 'torch._dynamo', 'uvicorn')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert (tmp_path / "out" / "photo.png.json").is_file()
    assert done.stdout.splitlines()[-1] == "[]"


def test_our_arguments_are_those_of_the_sdk(no_instance, monkeypatch):
    """`sdk_arguments` hands them over by name: an argument that the SDK renames would be lost silently."""
    from supervisely.nn.inference import Inference

    parsers = []
    parse = argparse.ArgumentParser.parse_known_args

    def spy(self, *args, **kwargs):
        parsers.append(self)
        return parse(self, *args, **kwargs)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", spy)
    monkeypatch.setattr(sys, "argv", ["serve"])
    Inference._parse_cli_deploy_args(None)

    def actions(parser: argparse.ArgumentParser) -> dict[str, tuple]:
        return {a.dest: (a.option_strings, a.nargs, type(a).__name__) for a in parser._actions}

    theirs, ours = actions(parsers[0]), actions(build_parser())
    own = {"bands", "format", "host", "mm_per_pixel", "model_control", "parent", "port", "range", "tolerance"}
    assert set(ours) - set(theirs) == own
    assert {name: value for name, value in ours.items() if name not in (*own, "mode")} == {
        name: value for name, value in theirs.items() if name != "mode"
    }
    choices = {a.dest: a.choices for a in parsers[0]._actions if a.choices}
    assert (list(DEVICES), list(RUNTIMES)) == (choices["device"], choices["runtime"])


def test_sdk_reads_the_arguments_that_were_given(checkpoint, photo, no_instance, monkeypatch):
    from supervisely.nn.inference import Inference

    words = ["predict", "--model", str(checkpoint), str(photo), "--draw", "--settings", "window=64", "stride=32"]
    args = parse_arguments(words)
    monkeypatch.setattr(sys, "argv", ["serve", *sdk_arguments(args)])
    read, is_command = Inference._parse_cli_deploy_args(None)
    assert is_command
    assert (read.mode, read.input, read.model) == ("predict", str(photo), str(checkpoint))
    assert (read.draw, read.upload, read.output) == (True, False, "./predictions")
    assert read.settings == ["window=64", "stride=32"]
