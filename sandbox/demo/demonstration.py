"""The main job end to end, and what adaptation gained over its two baselines."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import supervisely as sly

from common.data.project import ProjectError, open_project
from common.hrda.files import WriteError
from common.processors import available_processors
from sandbox.demo import arms, domains, page, report
from sandbox.demo.ending import ended_by_signals
from sandbox.demo.processes import App, DemoError, app, free_port
from sandbox.demo.watched import INDEX, ROOT, Watched
from sandbox.server import Sandbox, running

SETTINGS = Path(__file__).with_name("settings.yaml")
# In a folder that the demo made, and may therefore remove.
MARK = ".demo"
MINUTES = {"first": 3, "hrda": 7, "comparison": 8}
"""Measured on two idle cores, after the set-up; docs/demo.md tells them too."""
ROWS = 6
ANNOTATED = 12


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo", description=__doc__)
    folder = "DIR[:DATASET]"
    for role, what in (
        ("source", "labelled photos to learn from"),
        ("target", "photos to adapt to"),
        ("val", "labelled photos to measure on"),
    ):
        parser.add_argument(
            f"--{role}", metavar=folder, help=f"{what}: a project, or another format (default: generated)"
        )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo_output"), help="made anew")
    parser.add_argument("--seed", type=int, default=0, help="of all arms (default: 0)")
    parser.add_argument(
        "--settings", metavar="FILE", type=Path, default=SETTINGS, help="training settings of all arms, but their mode"
    )
    parser.add_argument(
        "--no-compare",
        dest="compare",
        action="store_false",
        help="leave out the comparison with source-only and control",
    )
    parser.add_argument("--keep", action="store_true", help="leave both apps running at the end, until Ctrl-C")
    return parser.parse_args(arguments)


class Clock:
    """Prints sentences with the time since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """Print a sentence."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        print(f"[{minutes:2}:{seconds:02}] {text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 when it came to its end, 2 with a sentence when it could not."""
    given = parse(arguments)
    sly.logger.setLevel("WARNING")
    # The sandbox speaks plain http; without this the SDK tries https first.
    os.environ["SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK"] = "true"
    try:
        with ended_by_signals():
            demonstrate(given)
    except (DemoError, ProjectError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WriteError as error:
        print(f"error: {error} {error.remedy.capitalize()}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 0


def demonstrate(given: argparse.Namespace) -> None:
    """Projects in, training, upload, deployment, annotations back; then the comparison, if it is wanted."""
    clock = Clock()
    say = clock.say
    say(what_comes_when(given))
    chosen = {"source": given.source, "target": given.target, "val": given.val}
    for spec in filter(None, chosen.values()):
        domains.require_photos(spec)
    make_anew(given.out)
    # Whoever opens the page before there is anything to see is told when there will be.
    page.Page(given.out / INDEX, "HRDA demo").show(is_whole=False, now=page.now(what_comes_when(given)))
    specs = domains.generate(given.out / "projects", chosen, say)
    classes = shared_classes(specs)
    with running(given.out / "instance") as sandbox, contextlib.ExitStack() as until_end:
        api = sly.Api(sandbox.address, sandbox.token)
        say(f"A sandbox stands in for the Supervisely instance at {sandbox.address}.")
        uploaded = domains.upload(api, sandbox.workspace_id, specs, say)
        train_task = new_task(sandbox, "config.json")
        state = arms.app_state(uploaded, classes, given.settings, given.seed)
        (given.out / "app_state.json").write_text(json.dumps(state, indent=2))
        watched = Watched(given, classes, say)
        compared = None
        if given.compare:
            compared = arms.ComparedArms(specs, classes, given.settings, given.seed, given.out, half(dict(os.environ)))
            until_end.callback(compared.stop)
        checkpoint = train_hrda(sandbox, train_task, uploaded, state, watched, compared)
        local = given.out / "hrda.pth"
        api.file.download(sandbox.team_id, checkpoint, str(local))

        serve_task = new_task(sandbox, "serve/config.json")
        serve_hrda = until_end.enter_context(serve_app(sandbox, serve_task, given.out))
        deploy(serve_hrda, checkpoint)
        thresholds = api.task.send_request(serve_task, "get_session_info", data={})["thresholds"]
        say(f"Serve HRDA runs at {serve_hrda.address} with that checkpoint. Thresholds: {thresholds}.")
        annotate(api, serve_task, uploaded["target"], say)

        photos = report.read_photos(specs["val"], classes, given.out / "cache")
        rows = np.linspace(0, len(photos) - 1, min(ROWS, len(photos))).astype(int)
        served = served_masks(api, serve_task, uploaded["val"], [photos[i] for i in rows])
        measured = {"HRDA": report.measure(local, photos)}
        watched.show_results(measured, photos, rows, served)
        if compared is not None:
            say("HRDA is done, see the page. The two other arms take some minutes more; Ctrl-C leaves them out.")
            compared.finish(say)
            others = {mode: report.measure(compared.checkpoint(mode), photos) for mode in arms.COMPARED_MODES}
            watched.show_results(others | measured, photos, rows, served)
        say(f"Done. Foreground on validation photos that no arm was trained on:\n\n{watched.summary}")
        print(f"Open this in a browser: {watched.page.path.resolve()}", flush=True)
        if given.keep:
            keep(sandbox, train_task, uploaded, serve_hrda, given.out)


def what_comes_when(given: argparse.Namespace) -> str:
    """What a person will see, after how many minutes, and where."""
    last = (
        f"after {MINUTES['comparison']} minutes: the comparison with source-only and control (COMPARE=0 leaves it out)"
        if given.compare
        else "then it ends, as the comparison is left out"
    )
    return (
        f"On two idle cores: after {MINUTES['first']} minutes the first pictures in {given.out / INDEX}, "
        f"which a browser opens; after {MINUTES['hrda']} minutes HRDA is trained, deployed and measured; {last}. "
        f"Logs of everything that runs: {given.out / 'logs'}"
    )


def train_hrda(
    sandbox: Sandbox,
    task_id: int,
    uploaded: dict[str, domains.Domain],
    state: dict[str, object],
    watched: Watched,
    compared: arms.ComparedArms | None,
) -> str:
    """Train HRDA through the app's API, and beside it begin with what it is compared with.

    Returns:
        Where its checkpoint lies in Team Files.
    """
    api = sly.Api(sandbox.address, sandbox.token)
    share = half if compared is not None else dict
    with train_app(sandbox, task_id, uploaded, watched.out, share=share) as app_:
        beside = ", beside it what to compare with" if compared is not None else ""
        watched.say(f"Train HRDA runs at {app_.address}; training through its API{beside}.")
        if compared is not None:
            compared.start()

        def tell(status: str) -> None:
            watched.say(f"HRDA: {status}" + (f" | {compared.progress()}" if compared is not None else ""))

        experiment = arms.train_in_app(app_, state, api, sandbox.team_id, task_id, tell, watched.look)
    checkpoint = f"{experiment.artifacts_dir.rstrip('/')}/checkpoints/{experiment.best_checkpoint}"
    watched.say(f"The experiment is in Team Files: {checkpoint}")
    return checkpoint


def half(env: dict[str, str]) -> dict[str, str]:
    """An environment with half of the processors. One training does not keep two of them busy, and threads of two
    trainings on the same ones only wait for each other."""
    return {**env, "OMP_NUM_THREADS": str(max(available_processors() // 2, 1))}


def make_anew(out: Path) -> None:
    """An empty folder for the demo; what an earlier demo left there goes.

    Raises:
        DemoError: the folder holds something that no demo made.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise DemoError(f"{out} holds something else than an earlier demo. Name another folder with --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def shared_classes(specs: dict[str, str]) -> list[str]:
    """Classes that source and validation both have.

    Raises:
        DemoError: there are none.
    """
    source, val = (open_project(specs[role]).class_names for role in ("source", "val"))
    shared = [name for name in source if name in val]
    if not shared:
        raise DemoError(
            f"Source and validation share no class: {', '.join(source)} against {', '.join(val)}. "
            "Give projects with a class of the same name; the generated source has the class 'crack'."
        )
    return shared


def new_task(sandbox: Sandbox, manifest: str) -> int:
    """Tell the sandbox of an app by its manifest, a path in the project, and make a task of it."""
    module = sandbox.add_module(json.loads((ROOT / manifest).read_text()))
    return sandbox.create_task(module["name"], moduleId=module["id"])["id"]


def train_app(
    sandbox: Sandbox,
    task_id: int,
    uploaded: dict[str, domains.Domain],
    out: Path,
    mode: str = "development",
    port: int | None = None,
    share: Callable[[dict[str, str]], dict[str, str]] = dict,
) -> contextlib.AbstractContextManager[App]:
    """Train HRDA, started on the source project.

    Args:
        sandbox: its instance.
        task_id: of the app.
        uploaded: the domains.
        out: gets its data and its log.
        mode: development or production.
        port: where it listens; None: a free one.
        share: what it gets of an environment.
    """
    port = port or free_port()
    sandbox.set_task_address(task_id, f"http://127.0.0.1:{port}")
    env = sandbox.env(
        ENV=mode,
        TASK_ID=task_id,
        PROJECT_ID=uploaded["source"].project_id,
        APP_NAME="Train HRDA",
        SLY_APP_DATA_DIR=(out / "train_app").resolve(),
    )
    return app("train.main:app", port, share(env), out / "logs" / "train_app.log")


def serve_app(
    sandbox: Sandbox, task_id: int, out: Path, mode: str = "development", port: int | None = None
) -> contextlib.AbstractContextManager[App]:
    """Serve HRDA, reachable through the instance by its task; `mode` is development or production."""
    port = port or free_port()
    sandbox.set_task_address(task_id, f"http://127.0.0.1:{port}")
    env = sandbox.env(ENV=mode, TASK_ID=task_id, APP_NAME="Serve HRDA", SLY_APP_DATA_DIR=(out / "serve_app").resolve())
    return app("serve.main:model.app", port, half(env), out / "logs" / "serve_app.log")


def deploy(serve_hrda: App, checkpoint: str) -> None:
    """Have Serve HRDA take a checkpoint of Team Files, as `api.nn.deploy` does."""
    parameters = {
        "model_source": "Custom models",
        "model_files": {"checkpoint": checkpoint},
        "device": "cpu",
        "runtime": "PyTorch",
    }
    serve_hrda.post("deploy_from_api", {"deploy_params": parameters}, timeout_s=300)


def annotate(api: sly.Api, task_id: int, target: domains.Domain, say: Callable[[str], None]) -> None:
    """What a user's script does: connect to the model, have it annotate unlabelled photos."""
    images = target.images(api)[:ANNOTATED]
    model = api.nn.connect(task_id)
    model.predict(image_id=[image.id for image in images], upload_mode="append", show_progress=False)
    labels = sum(len(api.annotation.download(image.id).annotation["objects"]) for image in images)
    say(f"An SDK script had {len(images)} target photos annotated: {labels} labels are on the instance.")


def served_masks(api: sly.Api, task_id: int, val: domains.Domain, photos: list[report.Photo]) -> list[np.ndarray]:
    """Foreground of validation photos as the served model answers at 0.5, as the other arms: H×W bool arrays."""
    model = api.nn.connect(task_id)
    ids = {image.name: image.id for image in val.images(api)}
    masks = []
    for photo in photos:
        [prediction] = model.predict(image_id=ids[photo.name], settings={"thresholds": {}}, show_progress=False)
        mask = np.zeros(photo.truth.shape, dtype=np.uint8)
        for label in prediction.annotation.labels:
            if label.obj_class.name != "__bg__":
                label.draw(mask, color=1)
        masks.append(mask > 0)
    return masks


def keep(sandbox: Sandbox, train_task: int, uploaded: dict[str, domains.Domain], serve_hrda: App, out: Path) -> None:
    """Leave both apps running until Ctrl-C. Train HRDA has ended after its upload, so it is started anew."""
    with train_app(sandbox, train_task, uploaded, out) as train_hrda:
        print(f"Train HRDA: {train_hrda.address}\nServe HRDA: {serve_hrda.address}")
        print(f"Sandbox: SERVER_ADDRESS={sandbox.address} API_TOKEN={sandbox.token}\nCtrl-C ends all three.")
        while True:
            time.sleep(3600)
