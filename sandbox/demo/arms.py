"""Training the demo's arms: two on the command line, HRDA through the app's API, all with the same settings."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import requests
import supervisely as sly
import yaml
from supervisely.nn.experiments import ExperimentInfo, get_experiment_infos

from sandbox.demo.domains import Domain
from sandbox.demo.processes import App, DemoError, command, tail

FRAMEWORK = "HRDA"
COMPARED_MODES = ("source-only", "control")
PROGRESS_LINE = re.compile(r"^\s*(\d+)/(\d+)\s", re.MULTILINE)
POLL_S = 2
REPORT_S = 20


class ComparedArms(threading.Thread):
    """Trains the arms that HRDA is compared with, one after the other, beside everything else.

    Args:
        specs: folders of source, target and val.
        classes: names of the classes.
        settings: settings file of all arms.
        seed: of all arms.
        out: a folder for each arm goes in here.
        env: environment of the training processes.
    """

    def __init__(
        self,
        specs: Mapping[str, str],
        classes: Sequence[str],
        settings: Path,
        seed: int,
        out: Path,
        env: Mapping[str, str],
    ) -> None:
        super().__init__(name="compared arms", daemon=True)
        self._specs, self._classes, self._settings = specs, classes, settings
        self._seed, self._out, self._env = seed, out, env
        self._stop_asked = threading.Event()
        self.failure: str | None = None

    def log(self, mode: str) -> Path:
        """What the training of an arm prints."""
        return self._out / "logs" / f"{mode}.log"

    def checkpoint(self, mode: str) -> Path:
        """The result of an arm."""
        return self._out / mode / "checkpoints" / "best.pth"

    def run(self) -> None:
        """Train one arm after the other."""
        for mode in COMPARED_MODES:
            arguments = ["train", "--mode", mode, "--settings", str(self._settings), "--device", "cpu"]
            arguments += [f"--{role}={spec}" for role, spec in self._specs.items()]
            arguments += ["--classes", ",".join(self._classes), "--set", f"seed={self._seed}"]
            with command([*arguments, "--out", str(self._out / mode)], self._env, self.log(mode)) as process:
                while process.poll() is None and not self._stop_asked.wait(POLL_S):
                    pass
                if self._stop_asked.is_set():
                    return
            if process.returncode != 0:
                self.failure = f"The arm '{mode}' failed:\n{tail(self.log(mode))}"
                return

    def stop(self) -> None:
        """End what runs."""
        self._stop_asked.set()
        if self.is_alive():
            self.join()

    def progress(self) -> str:
        """How far the arms are, in words."""
        parts = []
        for mode in COMPARED_MODES:
            log = self.log(mode)
            lines = PROGRESS_LINE.findall(log.read_text(errors="replace")) if log.exists() else []
            parts.append(f"{mode} {'/'.join(lines[-1]) if lines else 'starting' if log.exists() else 'waiting'}")
        return ", ".join(parts)

    def finish(self, say: Callable[[str], None]) -> None:
        """Wait for the end, with progress.

        Raises:
            DemoError: an arm failed.
        """
        while self.is_alive():
            self.join(REPORT_S)
            if self.is_alive():
                say(self.progress())
        if self.failure:
            raise DemoError(self.failure)


def app_state(domains: Mapping[str, Domain], classes: Sequence[str], settings: Path, seed: int) -> dict[str, object]:
    """What the page of Train HRDA would hold: the three domains, the classes, the model and the settings."""
    hyperparameters = yaml.safe_load(settings.read_text())
    return {
        "input": {
            "source": domains["source"].state,
            "target": domains["target"].state,
            "validation": domains["val"].state,
        },
        "model": {"source": "Pretrained models", "model_name": hyperparameters["model"]["encoder"]},
        "classes": list(classes),
        "hyperparameters": yaml.safe_dump({**hyperparameters, "mode": "uda", "seed": seed}),
        "options": {"model_benchmark": {"enable": False, "speed_test": False}, "cache_project": False},
        "experiment_name": f"cracks seed {seed}",
    }


def train_in_app(
    app: App,
    state: Mapping[str, object],
    api: sly.Api,
    team_id: int,
    task_id: int,
    progress: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
) -> ExperimentInfo:
    """Train through the app's API and wait for the experiment in Team Files.

    Args:
        app: the running Train HRDA.
        state: of `app_state`.
        api: of the instance.
        team_id: whose files the experiment goes to.
        task_id: of the app.
        progress: gets the app's own status now and then.
        look: called every few seconds meanwhile.

    Raises:
        DemoError: the app refused or failed, in its own words.
    """
    app.post("train_from_api", {"app_state": dict(state), "wait": False})
    reported, status = time.monotonic(), ""
    while app.process.poll() is None:
        time.sleep(POLL_S)
        look()
        try:
            status = app.post("train_status", {}, timeout_s=120)["status"]
        except requests.ConnectionError:
            # The app ends by itself when all is uploaded.
            break
        if "failed" in status.lower() or "error" in status.lower():
            raise DemoError(f"Train HRDA: {status}\n(log: {app.log})")
        if time.monotonic() - reported >= REPORT_S:
            reported = time.monotonic()
            progress(status)
    experiments = [e for e in get_experiment_infos(api, team_id, FRAMEWORK) if e.task_id == task_id]
    if not experiments:
        raise DemoError(f"Train HRDA ended without an experiment. Its last words: {status}\n{tail(app.log)}")
    return experiments[0]
