"""The model benchmark: the best checkpoint, served as it will be, measured by the SDK on the validation photos.

Predictions come from Serve HRDA in a process of its own, over the same routes as everybody's; counting and report are
the SDK's (`train.sdk.masks`). It runs when the checkpoints are uploaded already, so whatever goes wrong here ends
as a sentence and costs no training.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import requests
from supervisely import Api, logger
from supervisely.nn.inference import SessionJSON

from common.data.choice import UNCHOSEN_IS_BACKGROUND, Unchosen
from train.sdk.benchmark import BenchmarkError, BenchmarkReport, TrainedModel
from train.sdk.masks import MaskBenchmark, MissingPredictions

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
START_LIMIT_S = 600.0
END_LIMIT_S = 10.0
PHOTOS_AT_ONCE = 1
"""Photos a request: the windows of one fill the device, and each that is done moves the progress bar."""
TASK_VARIABLES = ("TASK_ID", "SUPERVISELY_TASK_ID", "context.taskId")

ProgressWidget = Callable[..., AbstractContextManager[Any]]


@dataclass(frozen=True)
class Measuring:
    """How it is measured."""

    project_id: int
    """Of the validation photos."""
    classes: Sequence[str]
    """The trained classes without the background."""
    device: str = "cpu"
    """As Serve HRDA takes it, such as 'cpu' or 'cuda:0'."""
    unchosen: Unchosen = UNCHOSEN_IS_BACKGROUND
    """What labels of other classes count as, as in training."""
    inference: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the prediction, as in training; those that the served model does not have are left out."""


def run_benchmark(
    api: Api,
    trained: TrainedModel,
    measuring: Measuring,
    *,
    progress: ProgressWidget,
    progress_secondary: ProgressWidget,
    stop: threading.Event,
) -> BenchmarkReport:
    """Predict the validation photos, compare, and upload evaluation and report.

    Args:
        api: of the instance.
        trained: the model, the photos, and where results go.
        measuring: how.
        progress: makes a progress bar, as the SDK's widget does: `progress(message=…, total=…)`.
        progress_secondary: as `progress`, for steps within steps.
        stop: ends the benchmark when it is set.

    Raises:
        BenchmarkError: it failed or was stopped; projects that it had made are removed again.
    """
    if stop.is_set():
        raise BenchmarkError("The model benchmark was left out because the training was stopped.")
    bars = [StoppableProgress(widget, stop) for widget in (progress, progress_secondary)]
    benchmark = MaskBenchmark(
        api,
        measuring.project_id,
        gt_images_ids=list(trained.image_ids),
        output_dir=str(trained.folder),
        progress=bars[0],
        progress_secondary=bars[1],
        classes_whitelist=list(measuring.classes),
        unchosen=measuring.unchosen,
    )
    benchmark.train_info = dict(trained.train_info)
    try:
        return _measure_and_report(api, trained, measuring, benchmark, bars[0], stop)
    except BenchmarkError:
        benchmark.remove_projects()
        raise
    except MissingPredictions as error:
        benchmark.remove_projects()
        raise BenchmarkError(f"The model benchmark has no result. {error} Run it again from the experiment.") from error
    except Exception as error:  # the SDK, the instance and the served model raise whatever they meet
        logger.error("The model benchmark failed", exc_info=True)
        benchmark.remove_projects()
        raise BenchmarkError(
            f"The model benchmark failed; the training and its checkpoints are not affected. "
            f"{type(error).__name__}: {error}"
        ) from error


def _measure_and_report(
    api: Api,
    trained: TrainedModel,
    measuring: Measuring,
    benchmark: MaskBenchmark,
    progress: StoppableProgress,
    stop: threading.Event,
) -> BenchmarkReport:
    with (
        progress(message="Model benchmark: starting the model", total=1) as bar,
        serving(trained.checkpoint, measuring.device, trained.folder / "serve", stop) as address,
    ):
        bar.update(1)
        session = SessionJSON(api, session_url=address)
        known = session.get_default_inference_settings()
        settings = {name: value for name, value in measuring.inference.items() if name in known and value is not None}
        # The best thresholds were looked for on these very photos: with them the score would flatter the model.
        settings["thresholds"] = {}
        benchmark.predict(session, settings, PHOTOS_AT_ONCE, trained.remote_checkpoint)
    benchmark.compare()
    remote_dir = trained.remote_dir.rstrip("/")
    benchmark.upload_eval_results(f"{remote_dir}/evaluation/")
    benchmark.visualize()
    benchmark.upload_visualizations(f"{remote_dir}/visualizations/")
    experiment = PurePosixPath(trained.remote_checkpoint.path).parents[1]
    benchmark.upload_report_link(str(experiment), benchmark.report.id, str(trained.folder))
    note = ""
    if not benchmark.classes_found & set(measuring.classes):
        note = (
            f"The model finds none of its classes in the {len(trained.image_ids)} validation photos. Train longer, or "
            "look at the share of confident pseudo-labels."
        )
    return BenchmarkReport(benchmark.report, benchmark.lnk, benchmark.scores, benchmark.primary_metric_name, note)


# -------------------------------------------------------------------------------------------------- the served model
@contextmanager
def serving(checkpoint: Path, device: str, folder: Path, stop: threading.Event) -> Iterator[str]:
    """Serve HRDA with a checkpoint, in a process that ends with the block.

    Args:
        checkpoint: on this machine.
        device: 'cpu', 'cuda:0' …
        folder: for its log, data and cache.
        stop: ends the waiting for it.

    Yields:
        Its address, once it answers.

    Raises:
        BenchmarkError: it ended, did not answer in time, or `stop` was set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    words = ["deploy", "--model", checkpoint, "--device", device, "--host", HOST, "--port", port]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", *map(str, words), "--parent", str(os.getpid())],
            cwd=folder,
            env=serving_environment(folder),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://{HOST}:{port}"
        _wait_until_ready(process, address, log, stop)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serving_environment(folder: Path) -> dict[str, str]:
    """The environment of the served model: the same instance, but not this app's task, page or folders."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in TASK_VARIABLES and not name.startswith("modal.")
    }
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "ENV": "development",
        "PYTHONPATH": os.pathsep.join(paths),
        "SLY_APP_DATA_DIR": str(folder / "app_data"),
        "SMART_CACHE_CONTAINER_DIR": str(folder / "cache"),
    }


def _wait_until_ready(process: subprocess.Popen, address: str, log: Path, stop: threading.Event) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(requests.ConnectionError, requests.Timeout):
            if requests.get(f"{address}/is_ready", timeout=5).ok:
                return
        if stop.wait(0.2):
            raise BenchmarkError("The model benchmark was stopped.")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    cause = "did not answer in time" if process.poll() is None else f"ended with status {process.returncode}"
    last = f" Its last line: {lines[-1][:300]}" if lines else ""
    raise BenchmarkError(f"The model benchmark failed: Serve HRDA {cause}.{last}")


# ----------------------------------------------------------------------------------------------------------- stopping
class StoppableProgress:
    """Makes progress bars like `widget`, whose next step raises BenchmarkError once `stop` is set."""

    def __init__(self, widget: ProgressWidget, stop: threading.Event) -> None:
        self._widget = widget
        self._stop = stop

    def __call__(self, *args: Any, **kwargs: Any) -> StoppableBar:
        """A bar, as the widget would make it."""
        return StoppableBar(self._widget(*args, **kwargs), self._stop)


class StoppableBar:
    """A progress bar."""

    def __init__(self, bar: Any, stop: threading.Event) -> None:
        self._bar = bar
        self._stop = stop

    def update(self, steps: float = 1) -> None:
        """Move on.

        Raises:
            BenchmarkError: a stop was asked for.
        """
        if self._stop.is_set():
            raise BenchmarkError("The model benchmark was stopped.")
        self._bar.update(steps)

    __call__ = update

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)
