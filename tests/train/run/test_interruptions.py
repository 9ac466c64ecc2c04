"""What must not cost a training: signals, kills, lost photos, damaged caches, disks and an instance that are away."""

import json
import multiprocessing
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import psutil
import pytest
import requests
from supervisely.nn.experiments import get_experiment_infos

from common.hrda import load_checkpoint
from sandbox.synthetic.projects import write_project
from tests.train.apps import LONG_HYPERPARAMETERS, ROOT, TRAIN_LIMIT_S, App, Instance, running_instance, started
from train.run.folder import RunFolder

SMALL = [
    "mode=source-only",
    "iterations=3",
    "batch_size=1",
    "log_interval=1",
    "model={encoder: mit_b0, crop_size: [64, 64], decoder_channels: 8, attention_channels: 8}",
    "optimizer.warmup_iterations=0",
    "data.scale={long_edge: null, short_edge: null}",
    "data.workers=0",
    "data.memory_cache_mb=0",
    "validation={interval: 2, previews: 0}",
    "checkpoint.interval=2",
]
SKIP = "data.skip_broken=true"


@dataclass(frozen=True)
class Row:
    """What happens to a run, and what comes of it."""

    phase: str
    way: str
    """Signals, or what befalls the files."""
    end: int
    """The exit code; negative for a signal."""
    left: tuple[int, ...] | None
    """Iterations done in the newest state to go on from: one of these; None: there is none."""
    said: tuple[str, ...] = ()
    """Patterns of what is said."""
    more: tuple[str, ...] = ()
    """Further settings."""
    resumes: bool = False
    """Whether continuing is all that it takes to come to the end."""

    def __str__(self) -> str:
        return "-".join([self.phase, self.way.replace(" ", "+"), *self.more])


STOPPING, ENDED = (
    r"Stopping after this iteration; once more ends without saving\.",
    r"^Ended without saving\. .*--resume",
)
GONE = r"Cannot read the image \S+/{}/ds\d+/img/\S+: No such file or directory\. Put it back as it was and continue, or"
CUT = r"Cannot read the image \S+: it is damaged, incomplete .* set data\.skip_broken"
AWAY = r"^Cannot read the image \S+: No such file or directory\. Its disk seems to be away: for"
MASK = r"The mask \S+\.png is damaged\. .* continue, and it is drawn again\."
READ_ONLY = r"\.pth was not written: read-only file system\. .*[Mm]ount the disk so that it can be written to"


def signals(phase: str, left: int | None, end: int, told: str, before: int | None) -> list[Row]:
    """The rows of the signals: one is obeyed when the time has come, a second at once, a kill leaves what there was."""
    kept, earlier = (None if one is None else (one,) for one in (left, before))
    return [
        *(Row(phase, way, end, kept, (STOPPING, told)) for way in ("SIGINT", "SIGTERM", "SIGHUP SIGHUP")),
        Row(phase, "SIGINT SIGINT", 130, earlier, (STOPPING, ENDED)),
        Row(phase, "SIGHUP SIGTERM SIGINT", 130, earlier, (ENDED,)),
        Row(phase, "SIGKILL", -signal.SIGKILL, earlier),
    ]


ROWS = [
    *signals("preparing", None, 2, r"^error: Stopped while the photos were prepared\. Nothing was trained\.$", None),
    Row("preparing", "one photo", 2, None, (r"Masks of the source: 1 of 2 images cannot be used\. Mend or remove",)),
    Row("preparing", "one photo", 0, (3,), (r"Left out: Cannot read the image \S+/source/",), (SKIP,)),
    Row("preparing", "read-only", 2, None, (r"\.png was not written: read-only file system\. Mount the disk so",)),
    *signals("training", 1, 0, r"^Stopped after iteration 1 of 3\.$", 0),
    Row("training", "photo", 2, (1,), (GONE.format("source"), r"The checkpoint of iteration 1 is intact")),
    Row("training", "cut photo", 2, (1,), (CUT,)),
    Row("training", "photo", 2, (2, 3, 4, 5), (GONE.format("source"),),
        ("data.workers=1", "iterations=20", "validation.interval=99")),
    Row("training", "one photo", 0, (6,), (r"/source/.* Another photo is drawn in its place \(1 so far\)",
        r"^1 photo was lost during the training"), (SKIP, "iterations=6")),
    Row("training", "other photo", 2, (1,), (r"is another one than its labels are for: 96 pixels high and 80 wide",)),
    Row("training", "share", 2, (1,), (AWAY, r"^error: .*See to its disk, and continue\.")),
    Row("training", "share", 2, (1,), (AWAY, r"^error: .*See to its disk, and continue\."), (SKIP,)),
    Row("training", "share for a while", 0, (3,), (AWAY,), ("data.workers=1",)),
    Row("training", "cache", 2, (1,), (MASK,), resumes=True),
    Row("training", "read-only", 2, (0,), (READ_ONLY, r"stays the one before: mount", r"tried as usual: mount")),
    *signals("measuring", 2, 0, r"^Stopped after iteration 2 of 3\.$", 0),
    Row("measuring", "photo", 2, (2,), (GONE.format("val"), r"The checkpoint of iteration 2 is intact")),
    Row("measuring", "photo", 2, (2,), (r"None of the validation photos can be read.*Put the photos back",), (SKIP,)),
    Row("measuring", "share for a while", 0, (3,), (AWAY,)),
    Row("measuring", "cache", 2, (2,), (MASK,)),
    Row("measuring", "read-only", 2, (0,), (READ_ONLY,)),
    *signals("saving", 2, 0, r"^Stopped after iteration 2 of 3\.$", 0),
    Row("saving", "photo", 2, (2,), (GONE.format("source"),)),
    Row("saving", "cache", 2, (2,), (MASK,)),
    Row("saving", "read-only", 2, (0,), (READ_ONLY,)),
]  # fmt: skip
UPLOADS = [
    *((way, 0) for way in ("SIGINT", "SIGTERM", "SIGHUP SIGHUP", "photo", "cache", "read-only")),
    ("SIGINT SIGINT", 1),
    ("SIGKILL", -signal.SIGKILL),
]

INTERVAL = 4
HYPERPARAMETERS = LONG_HYPERPARAMETERS.replace(
    "validation: {max_images: 1}",
    f"validation: {{interval: {INTERVAL}, max_images: 1}}\ncheckpoint: {{interval: {INTERVAL}}}",
)
ANSWER_LIMIT_S = 2.0
"""For a click's answer on a machine that tests share; the browser's bar is tighter and measured there."""


@pytest.fixture(scope="module")
def interrupted() -> Iterator[Callable[..., int]]:
    """Runs a function of interrupting.py in a process made quickly and from one without threads; gives its end."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        # Installed packages may be called tests, too; to a new process this name is its own.
        patch.setenv("PYTHONPATH", f"{ROOT}:{Path(__file__).parent}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(Path(__file__).parent)
        interrupting = import_module("interrupting")

        def end_of(name: str, *arguments: object) -> int:
            child = context.Process(target=getattr(interrupting, name), args=arguments)
            child.start()
            child.join(120)
            return child.exitcode

        yield end_of


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the projects of a run."""
    folder = tmp_path_factory.mktemp("projects")
    write_project(folder / "source", "source", 2, size=(64, 64), workers=1)
    write_project(folder / "val", "source", 1, seed=1, size=(64, 64), workers=1)
    return folder


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_whatever_happens_to_a_run_leaves_what_was_learnt_and_is_told_in_a_sentence(
    row: Row, projects: Path, tmp_path: Path, interrupted: Callable[..., int]
):
    shutil.copytree(projects, tmp_path, dirs_exist_ok=True)
    out, words = tmp_path / "run", tmp_path / "words.txt"
    command = ["--source", f"{tmp_path}/source", "--val", f"{tmp_path}/val", "--out", str(out), "--device", "cpu"]
    more = [word for setting in (*SMALL, *row.more) for word in ("--set", setting)]
    end = interrupted("run", [*command, *more], row.phase, row.way, words)
    text = words.read_text(encoding="utf-8")
    assert end == row.end, text
    assert "Traceback" not in text
    for pattern in row.said:
        assert re.search(pattern, text, re.M), f"{pattern}\n{text}"
    if end == 2:
        assert len(re.findall("^error: ", text, re.M)) == 1, text

    folder = RunFolder(out)
    latest = folder.latest
    assert latest in (row.left or (None,))
    if end != -signal.SIGKILL:
        assert not list(out.rglob(".*.pth.*")), "halves of files"
    if row.left and max(row.left) > 0:
        assert load_checkpoint(folder.last).iteration == latest
    said: list[str] = []
    if latest is not None:
        with folder.claimed(resume=True, say=said.append) as state:
            assert (state.iteration, said) == (latest, [])
    if row.resumes:
        assert interrupted("run", [*command, "--resume"], "", "", words) == 0, words.read_text(encoding="utf-8")
        assert load_checkpoint(folder.last).iteration == 3


@pytest.mark.parametrize(("way", "end"), UPLOADS, ids=[way.replace(" ", "+") for way, _ in UPLOADS])
def test_whatever_happens_to_an_upload_leaves_all_that_it_uploads(
    way: str, end: int, projects: Path, tmp_path: Path, interrupted: Callable[..., int]
):
    """A second signal ends it, not with zero: the platform keeps the files, and the app offers to try again."""
    shutil.copytree(projects, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth").write_bytes(b"weights")
    words = tmp_path / "words.txt"
    assert interrupted("upload", way, tmp_path, words) == end, words.read_text(encoding="utf-8")
    text = words.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert ("is saved and uploaded first. Once more ends it at once" in text) == way.startswith(
        ("SIGI", "SIGT", "SIGH")
    )
    assert (tmp_path / "run" / "last.pth").read_bytes() == b"weights"
    assert (tmp_path / "team_files" / "last.pth").exists() == (end == 0)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with running_instance(tmp_path_factory.mktemp("instance")) as made:
        yield made


def iteration(app: App) -> int:
    """How far the training is, as the status says."""
    found = re.search(r"iteration (\d+) of 500", app.status())
    return int(found[1]) if found else 0


def is_shown(app: App, widget: str) -> bool:
    return not app.data()[widget]["hide"]


def training_process(app: App) -> psutil.Process:
    children = psutil.Process(app.process.pid).children()
    [found] = [child for child in children if child.cmdline()[1:3] == ["-m", "train"]]
    return found


def test_training_outlives_its_process_the_instance_and_the_app(instance: Instance):
    options = {"model_benchmark": {"enable": False}, "cache_project": True}
    state = instance.state(
        hyperparameters=HYPERPARAMETERS, options=options, device="cpu", experiment_name="interrupted"
    )
    launch = {"modal.state.guiState": json.dumps(state), "SUPERVISELY_PUBLIC_API_RETRY_SLEEP_SEC": 0}
    with started(instance, "production", name="story", **launch) as app:
        before = time.monotonic()
        app.press("start_button")
        assert time.monotonic() - before < ANSWER_LIMIT_S
        picture = app.wait_for("a preview", lambda: app.data()["preview_target_1_pseudo_label"]["url"])
        answer = requests.get(f"{app.url}/{picture}", timeout=10)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        assert requests.get(f"{app.url}/previews/..%2f..%2f/resume.json", timeout=10).status_code == 404
        series = {
            chart["options"]["title"]["text"]: chart["series"] for chart in app.data().values() if "series" in chart
        }
        assert {one["name"] for one in series["Validation mIoU, %"]} == {"student", "teacher"}
        assert len(series["Losses"][0]["data"]) > 1

        app.wait_for("a checkpoint", lambda: iteration(app) > INTERVAL)
        training_process(app).kill()
        app.wait_for("the cause", lambda: "was ended by the system (signal 9)" in app.status())
        assert app.status().startswith("Error: ")
        app.wait_for("the offer to continue", lambda: is_shown(app, "continue_checkbox"))
        offer = re.search(r"iteration (\d+) of 500; mit_b0; crack", app.data()["continue_text"]["text"])
        kept_at = int(offer[1])
        assert kept_at >= INTERVAL
        assert kept_at % INTERVAL == 0

        app.press("start_button")
        app.wait_for("the training to go on", lambda: "Training: iteration" in app.status())
        assert iteration(app) >= kept_at, "it began anew"
        assert "The source photos are here from the interrupted run" in app.log.read_text(encoding="utf-8")

        instance.go_away()
        gone_at = iteration(app)
        app.wait_for("iterations without the instance", lambda: iteration(app) > gone_at + INTERVAL)
        app.press("stop_button")
        app.wait_for("the broken upload", lambda: "The upload broke off" in app.status())
        assert is_shown(app, "retry_upload")
        assert "work_dir/output on the machine" in app.data()["retry_text"]["text"]
        app.process.kill()
        app.process.wait()

    instance.come_back()
    with started(instance, "production", name="story", task_id=app.task_id, **launch) as again:
        assert is_shown(again, "retry_upload"), "started again, the task still knows of its files"
        instance.go_away()
        again.press("retry_upload")
        again.wait_for("the second broken upload", lambda: "The upload broke off" in again.status())
        instance.come_back()
        again.press("retry_upload")
        assert again.process.wait(TRAIN_LIMIT_S) == 0, again.tail()

    [experiment] = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    assert (experiment.task_id, experiment.experiment_name) == (app.task_id, "interrupted")
    assert load_checkpoint(instance.read(experiment, "checkpoints/last.pth")).iteration > gone_at
    kept = json.loads(instance.read(experiment, "app_state.json").read_text(encoding="utf-8"))
    domains = {role: {"project_id": number, "dataset_ids": None} for role, number in instance.projects.items()}
    same = {name: state[name] for name in ("model", "classes", "hyperparameters", "device")}
    assert {name: kept[name] for name in same} == same
    assert kept["input"] == domains


def test_task_stopped_by_the_platform_saves_and_uploads(instance: Instance):
    with started(instance, "development", **{"SUPERVISELY_PUBLIC_API_RETRY_SLEEP_SEC": 0}) as app:
        nothing = app.post("train_from_api")
        assert (nothing.status_code, "app_state" in nothing.json()["detail"]) == (400, True)
        continued = app.post("train_from_api", {"app_state": instance.state(**{"continue": True})})
        assert (continued.status_code, "no interrupted run" in continued.json()["detail"]) == (400, True)

        state = instance.state(hyperparameters=LONG_HYPERPARAMETERS)
        assert app.post("train_from_api", {"app_state": state, "wait": False}).status_code == 200, app.tail()
        app.wait_for("iterations", lambda: iteration(app) > 1)
        app.process.send_signal(signal.SIGTERM)
        assert app.process.wait(TRAIN_LIMIT_S) == 0, app.tail()
    experiments = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    [stopped] = [experiment for experiment in experiments if experiment.task_id == app.task_id]
    assert 1 < load_checkpoint(instance.read(stopped, "checkpoints/last.pth")).iteration < 500
