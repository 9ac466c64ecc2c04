"""`python -m serve batch` without Ray: the steps run one after the other in this process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from common.hrda.files import WriteError
from serve.batch import pipeline, rays, steps
from serve.batch.storage import Folder, safe_name
from serve.batch.worker import Worker
from serve.errors import RequestError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, one of them below, one that is none, and a text."""
    random, folder = np.random.default_rng(3), tmp_path / "photos"
    (folder / "night").mkdir(parents=True)
    for n, name in enumerate(("a.png", "b.jpg", "night/a.png")):
        Image.fromarray(random.integers(0, 256, (64 + n, 70, 3), dtype=np.uint8)).save(folder / name)
    (folder / "night" / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("nothing", encoding="utf-8")
    return folder


def files(folder: Path) -> list[str]:
    """What is in a folder but for the manifest."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith("manifest/"))


def test_each_photo_has_one_result_and_one_that_fails_is_told(run, photos, tmp_path, checkpoint, capsys):
    assert run("--format", "masks,overlay") == (3, ["a.png", "b.jpg", "night/a.png", "night/broken.jpg"])
    results = [f"{kind}/{name}.png" for kind in ("masks", "overlay") for name in ("a", "b", "night/a")]
    assert files(tmp_path / "out") == sorted([*results, "masks/classes.json"])
    [labels] = Worker.from_file(checkpoint, "cpu").labels([np.asarray(Image.open(photos / "night/a.png"))])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/masks/night/a.png")), labels)
    told = capsys.readouterr().out
    assert "4 photos in" in told and "1 file that is no image (notes.txt)" in told
    assert "night/broken.jpg: Cannot read the image night/broken.jpg: it is damaged" in told
    [noted] = [
        record
        for record in map(json.loads, (tmp_path / "out/manifest/all.jsonl").read_text().splitlines())
        if record["photo"] == "a.png"
    ]
    assert noted["result"] == ["masks/a.png", "overlay/a.png"] and not noted["reason"]
    assert (
        noted["counts"]
        == np.bincount(np.asarray(Image.open(tmp_path / "out/masks/a.png")).ravel(), minlength=3).tolist()
    )


def test_same_command_does_what_is_missing_and_says_what_changed(run, photos, tmp_path, make_checkpoint, capsys):
    (photos / "night/broken.jpg").unlink()
    everything, all_four = ["a.png", "b.jpg", "night/a.png"], ["a.png", "b.jpg", "new.jpg", "night/a.png"]
    assert run() == (0, everything)
    assert run() == (0, [])
    assert "3 photos in" in capsys.readouterr().out

    (tmp_path / "out/masks/b.png").unlink()
    shutil.copy(photos / "b.jpg", photos / "new.jpg")
    shutil.copy(photos / "b.jpg", photos / "a.png")
    assert run() == (0, ["a.png", "b.jpg", "new.jpg"])
    told = capsys.readouterr().out
    for why in ("1 whose result is gone", "1 without a result", "1 changed since they were predicted"):
        assert why in told

    assert run("--format", "masks,overlay") == (0, all_four)
    assert "4 without one of the formats" in capsys.readouterr().out
    assert run() == (0, []), "fewer formats need nothing"
    assert run("--settings", "stride=32") == (0, all_four)
    assert "Of 4 photos the results are of before a change: stride was None and is [32, 32]." in capsys.readouterr().out

    other = make_checkpoint("other.pth", seed=1)
    assert run("--settings", "stride=32", "--model", other) == (0, all_four)
    assert "the model was 'model.pth' and is other.pth" in capsys.readouterr().out


def test_photo_that_comes_with_the_name_of_another_has_a_result_of_its_own(run, photos, tmp_path):
    run()
    Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save(photos / "b.png")
    assert run()[1] == ["b.png", "night/broken.jpg"]
    masks = {name: Image.open(tmp_path / "out/masks" / name).size for name in ("b.png", "b.png.png")}
    assert masks == {"b.png": (70, 65), "b.png.png": (70, 70)}


def test_dry_run_says_what_would_be_done_and_writes_nothing(run, photos, tmp_path, capsys):
    assert run("--dry-run", "--format", "masks,overlay") == (0, [])
    told = capsys.readouterr().out
    assert "4 photos to predict with model.pth on cpu: 4 without a result." in told
    assert "What is written: masks, overlay." in told
    assert not (tmp_path / "out").exists()


def test_list_names_photos_from_anywhere(run, photos, tmp_path):
    (photos / "list.txt").write_text(f"night/a.png\n\n# no\n{photos / 'b.jpg'}\nnight/gone.png\n", encoding="utf-8")
    assert run(source=photos / "list.txt") == (3, ["b.jpg", "night/a.png", "night/gone.png"])
    assert files(tmp_path / "out") == ["masks/b.png", "masks/classes.json", "masks/night/a.png"]


def test_whatever_a_photo_is_called_it_has_its_result(run, photos, tmp_path, capsys):
    (photos / "night/broken.jpg").rename(photos / "\x1b[31mbroken.jpg")
    longest = f"{'x' * 251}.png"
    for name in ("line\nbreak.png", os.fsdecode(b"caf\xe9.png"), longest):
        shutil.copy(photos / "a.png", photos / name)
    words = ("--format", "masks,csv,pascal")
    status, worked = run(*words)
    assert (status, len(worked)) == (3, 7)
    told = capsys.readouterr().out
    assert "  _[31mbroken.jpg: " in told and "\x1b" not in told
    masks = {path.name for path in (tmp_path / "out/masks").iterdir()}
    assert masks >= {"line_break.png", "caf\ufffd.png", longest}
    assert run(*words) == (3, ["_[31mbroken.jpg"])
    names = (tmp_path / "out/pascal/ImageSets/Segmentation/val.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == 6


def test_name_that_no_result_can_have_costs_the_others_nothing(run, photos, tmp_path, capsys):
    (photos / "b.png").mkdir()
    shutil.copy(photos / "a.png", photos / "b.png/c.png")
    shutil.copy(photos / "a.png", photos / f"{'x' * 251}.png")
    assert run("--format", "masks")[0] == 3
    capsys.readouterr()
    assert run("--format", "supervisely")[0] == 3
    told = capsys.readouterr().out
    assert "was not written: file name too long. Give it a shorter name." in told
    assert len(list((tmp_path / "out").glob("supervisely/**/*.json"))) == 4


def test_folder_that_cannot_be_looked_into_is_told(run, photos, monkeypatch, capsys):
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("night"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run() == (0, ["a.png", "b.jpg"])
    assert "1 folder that cannot be looked into (night)" in capsys.readouterr().out
    monkeypatch.setattr(os, "scandir", lambda path: scandir("night"))
    assert run()[0] == 2
    assert "cannot be looked into: Permission denied. Give this user the right to." in capsys.readouterr().err


def test_manifest_that_names_places_elsewhere_is_not_followed(run, photos, tmp_path):
    run()
    path = tmp_path / "out/manifest/all.jsonl"
    path.write_text(path.read_text().replace('"name": "a"', '"name": "../../elsewhere/a"'))
    (tmp_path / "out/masks/a.png").unlink()
    assert run() == (3, ["a.png", "night/broken.jpg"])
    assert (tmp_path / "out/masks/a.png").is_file() and not (tmp_path / "elsewhere").exists()


def test_manifest_that_cannot_be_read_is_told(run, photos, tmp_path, capsys):
    (tmp_path / "out/manifest/all.jsonl").mkdir(parents=True)
    (tmp_path / "out/manifest/all.jsonl/1.jsonl").touch()
    (tmp_path / "out/manifest/2.jsonl").symlink_to("/proc/self/mem")
    assert run() == (2, [])
    assert "What was done before cannot be read" in capsys.readouterr().err


def test_processes_that_read_and_write_wait_for_no_torch():
    code = "import sys, serve.batch.pipeline; assert not {'torch', 'supervisely', 'skimage'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_names_lead_to_nothing_outside_of_the_results():
    assert [safe_name(name) for name in ("../../a.png", "/etc/a.png", "./a/../b.png")] == [
        "a.png",
        "etc/a.png",
        "a/b.png",
    ]


def test_run_that_is_killed_is_gone_on_with_and_leaves_no_halves(run, photos, tmp_path, inline, monkeypatch):
    (photos / "night/broken.jpg").unlink()
    whole = pipeline.stream

    def killed(*args):
        yield next(whole(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "stream", killed)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 130
    half = tmp_path / f"out/masks/.b.png.{'0' * 32}"
    half.write_bytes(b"half")
    monkeypatch.setattr(pipeline, "stream", whole)
    assert run() == (0, ["b.jpg", "night/a.png"])
    assert not half.exists()


def test_full_disk_ends_the_run_with_a_sentence_and_what_is_done_stays(run, photos, monkeypatch, capsys):
    whole = Folder.write

    def write(folder, name, content):
        if name == "masks/b.png":
            raise WriteError(folder.path(name), OSError(28, "No space left on device"))
        whole(folder, name, content)

    monkeypatch.setattr(Folder, "write", write)
    assert run() == (2, ["a.png", "b.jpg"])
    assert "b.png was not written: the disk is full" in capsys.readouterr().err
    monkeypatch.setattr(Folder, "write", whole)
    assert run() == (3, ["b.jpg", "night/a.png", "night/broken.jpg"])


def test_results_do_not_become_photos(run, photos, capsys):
    assert run(output=photos / "out") == (2, [])
    assert "would be photos for the next run" in capsys.readouterr().err


def test_two_commands_do_not_work_into_one_folder(run, photos, tmp_path, capsys):
    from serve.batch.command import _alone_in

    with _alone_in(Folder(str(tmp_path / "out"))):
        assert run()[0] == 2
    assert "Another serve batch works into" in capsys.readouterr().err
    assert run()[0] == 3


def test_photos_and_results_lie_in_s3(run, photos, s3, tmp_path, capsys):
    bucket = Folder("s3://site/photos")
    for name in ("a.png", "b.jpg", "night/a.png", "night/broken.jpg", "notes.txt"):
        bucket.write(name, (photos / name).read_bytes())
    places = {"source": bucket.address, "output": "s3://site/out"}
    assert run(**places)[0] == 3
    assert run()[0] == 3
    out = Folder("s3://site/out")
    for name in ("a.png", "b.png", "night/a.png", "classes.json"):
        assert out.read(f"masks/{name}") == (tmp_path / "out/masks" / name).read_bytes()
    assert run(**places) == (3, ["night/broken.jpg"])
    bucket.write("b.jpg", (photos / "a.png").read_bytes())
    assert run(**places) == (3, ["b.jpg", "night/broken.jpg"])
    capsys.readouterr()
    assert run(source="s3://nowhere/photos", output="s3://site/out")[0] == 2
    assert "s3://nowhere/photos" in capsys.readouterr().err


def test_store_that_goes_away_ends_the_run_and_what_is_done_stays(run, photos, s3, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.jpg", "night/a.png"):
        Folder("s3://site/photos").write(name, (photos / name).read_bytes())
    decode = steps.decode_image

    def decode_and_leave(*args):
        s3.stop()
        return decode(*args)

    monkeypatch.setattr(steps, "decode_image", decode_and_leave)
    assert run(source="s3://site/photos") == (2, ["a.png", "b.jpg"])
    assert "Cannot read the image s3://site/photos/b.jpg" in (told := capsys.readouterr().err)
    assert "Its disk is away." in told
    assert files(tmp_path / "out") == ["masks/a.png"]


def test_machines_of_a_cluster_that_still_start_are_waited_for(monkeypatch):
    import ray

    machine = {"Alive": True, "Resources": {"CPU": 3.0}}
    there, said = [[machine, machine | {"Alive": False}], [machine] * 2], []
    monkeypatch.setattr(ray, "nodes", lambda: there.pop(0))
    rays.wait_for_room(2, {"CPU": 2.0}, said.append)
    assert said == ["The cluster has room for 1 of 2 workers (2 CPU each). It is waited for more machines."]
    there.append([machine])
    monkeypatch.setattr(rays, "_STARTING_S", -1.0)
    with pytest.raises(RequestError, match=r"room for 0 of 1 workers \(1 CPU and 1 GPU each\).*--workers"):
        rays.wait_for_room(1, {"CPU": 1.0, "GPU": 1.0})


def test_signal_that_ends_the_command_stays_its_own(monkeypatch):
    def init(**_):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    before = signal.signal(signal.SIGTERM, note := lambda *_: None)
    try:
        with rays.ray_at("auto"):
            assert signal.getsignal(signal.SIGTERM) is note
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_ray_it_is_said_what_to_install(run, photos, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr(rays, "find_spec", lambda name: None if name == "ray" else object())
    assert run()[0] == 2
    assert "needs ray, which this Python does not have" in (told := capsys.readouterr().err)
    assert "pip install -r requirements-batch.txt" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--upload", "append"], "--upload and --dataset need --project"),
        (["--dataset", "1"], "--upload and --dataset need --project"),
        (["--workers", "0"], "expected a whole number from 1"),
        (["--memory-mb", "64"], "expected a whole number from 100"),
        (["--upload", "create"], "invalid choice: 'create'"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_read(run, words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "mask"], "did you mean 'masks'?"),
        (["--settings", "strid=32"], "did you mean 'stride'?"),
        (["--tolerance", "-1"], "tolerance must be pixels from 0 to 100"),
        (["--model", "nowhere.pth"], "There is no checkpoint at nowhere.pth"),
        (["--device", "cuda"], "Each worker takes a GPU, and this machine has no GPU for 1"),
        (["--input", "nowhere"], "There is no folder, photo or list of photos at 'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(run, photos, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert run(*words) == (2, [])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
