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
from sandbox.demo import arms, domains, report
from sandbox.demo.ending import ended_by_signals
from sandbox.demo.processes import App, DemoError, app, free_port
from sandbox.server import Sandbox, running

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Path(__file__).with_name("settings.yaml")
# In a folder that the demo made, and may therefore remove.
MARK = ".demo"
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
        parser.add_argument(f"--{role}", metavar=folder, help=f"{what}, a Supervisely project (default: generated)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo_output"), help="made anew")
    parser.add_argument("--seed", type=int, default=0, help="of all arms (default: 0)")
    parser.add_argument(
        "--settings", metavar="FILE", type=Path, default=SETTINGS, help="training settings of all arms, but their mode"
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
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 0


def demonstrate(given: argparse.Namespace) -> None:
    """Projects in, training, upload, deployment, annotations back, and the comparison."""
    clock = Clock()
    say = clock.say
    say("This takes about 13 minutes on two cores. Logs of everything that runs: " + str(given.out / "logs"))
    chosen = {"source": given.source, "target": given.target, "val": given.val}
    for spec in filter(None, chosen.values()):
        open_project(spec)
    make_anew(given.out)
    specs = domains.generate(given.out / "projects", chosen, say)
    classes = shared_classes(specs)
    with running(given.out / "instance") as sandbox, contextlib.ExitStack() as until_end:
        api = sly.Api(sandbox.address, sandbox.token)
        say(f"A sandbox stands in for the Supervisely instance at {sandbox.address}.")
        uploaded = domains.upload(api, sandbox.workspace_id, specs, say)

        train_task = new_task(sandbox, "config.json")
        state = arms.app_state(uploaded, classes, given.settings, given.seed)
        (given.out / "app_state.json").write_text(json.dumps(state, indent=2))
        compared = arms.ComparedArms(
            specs, classes, given.settings, given.seed, given.out, one_thread(dict(os.environ))
        )
        with train_app(sandbox, train_task, uploaded, given.out) as train_hrda:
            say(f"Train HRDA runs at {train_hrda.address}; training through its API, beside it the two other arms.")
            compared.start()
            until_end.callback(compared.stop)
            experiment = arms.train_in_app(
                train_hrda, state, api, sandbox.team_id, train_task, lambda s: say(f"HRDA: {s} | {compared.progress()}")
            )
        checkpoint = f"{experiment.artifacts_dir.rstrip('/')}/checkpoints/{experiment.best_checkpoint}"
        say(f"The experiment is in Team Files: {checkpoint}")
        local = given.out / "hrda.pth"
        api.file.download(sandbox.team_id, checkpoint, str(local))

        serve_task = new_task(sandbox, "serve/config.json")
        serve_hrda = until_end.enter_context(serve_app(sandbox, serve_task, given.out))
        deploy(serve_hrda, checkpoint)
        thresholds = api.task.send_request(serve_task, "get_session_info", data={})["thresholds"]
        say(f"Serve HRDA runs at {serve_hrda.address} with that checkpoint. Thresholds: {thresholds}.")
        annotate(api, serve_task, uploaded["target"], say)

        compared.finish(say)
        photos = report.read_photos(specs["val"], classes, given.out / "cache")
        say(f"Measuring the three arms on {len(photos)} validation photos.")
        checkpoints = {mode: compared.checkpoint(mode) for mode in arms.COMPARED_MODES} | {"HRDA": local}
        measured = {name: report.measure(path, photos) for name, path in checkpoints.items()}
        rows = np.linspace(0, len(photos) - 1, min(ROWS, len(photos))).astype(int)
        served = served_masks(api, serve_task, uploaded["val"], [photos[i] for i in rows])
        columns = {name: [predictions[i] for i in rows] for name, (_, predictions) in measured.items()}
        report.picture(given.out / "comparison.png", [photos[i] for i in rows], {**columns, "HRDA": served})

        figures = report.table({name: result for name, (result, _) in measured.items()})
        summary = (
            f"{', '.join(classes)}, seed {given.seed}, {len(photos)} validation photos, in % of pixels\n{figures}\n"
        )
        (given.out / "comparison.txt").write_text(summary)
        say(f"Done. Foreground on validation photos that no arm was trained on:\n\n{summary}")
        print(f"Photo, truth and predictions side by side: {given.out / 'comparison.png'}")
        if given.keep:
            keep(sandbox, train_task, uploaded, serve_hrda, given.out)


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


def one_thread(env: dict[str, str]) -> dict[str, str]:
    """Two trainings side by side, each on one core: threads of both on the same cores only wait for each other."""
    return {**env, "OMP_NUM_THREADS": "1"}


def train_app(
    sandbox: Sandbox,
    task_id: int,
    uploaded: dict[str, domains.Domain],
    out: Path,
    mode: str = "development",
    port: int | None = None,
) -> contextlib.AbstractContextManager[App]:
    """Train HRDA, started on the source project; `mode` is development or production, without `port` a free one."""
    port = port or free_port()
    sandbox.set_task_address(task_id, f"http://127.0.0.1:{port}")
    env = sandbox.env(
        ENV=mode,
        TASK_ID=task_id,
        PROJECT_ID=uploaded["source"].project_id,
        APP_NAME="Train HRDA",
        SLY_APP_DATA_DIR=(out / "train_app").resolve(),
    )
    return app("train.main:app", port, one_thread(env), out / "logs" / "train_app.log")


def serve_app(
    sandbox: Sandbox, task_id: int, out: Path, mode: str = "development", port: int | None = None
) -> contextlib.AbstractContextManager[App]:
    """Serve HRDA, reachable through the instance by its task; `mode` is development or production."""
    port = port or free_port()
    sandbox.set_task_address(task_id, f"http://127.0.0.1:{port}")
    env = sandbox.env(ENV=mode, TASK_ID=task_id, APP_NAME="Serve HRDA", SLY_APP_DATA_DIR=(out / "serve_app").resolve())
    return app("serve.main:model.app", port, one_thread(env), out / "logs" / "serve_app.log")


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
