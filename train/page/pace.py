"""The button that measures how long an iteration of the chosen network takes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path

from supervisely.app.widgets import Container, Text

from train.page.live import BackgroundButton, put, send
from train.run.readers import duration
from train.settings.training import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300
"""A network that takes longer than this for a few iterations is too slow to train here."""


class PaceEstimate:
    """Measures in a process of its own, so that neither its work nor its memory is the page's. Ids: `estimate_pace`,
    `estimate_text`.

    Args:
        settings: gives those of the run with the chosen network.
        measured: is told the network's name and what its column shows.
    """

    def __init__(self, settings: Callable[[], TrainSettings], measured: Callable[[str, str], None]) -> None:
        self._settings, self._measured = settings, measured
        self._text = Text("", widget_id="estimate_text", font_size=13)
        self._button = BackgroundButton("Estimate", plain=True, button_size="small", widget_id="estimate_pace")
        self._button.click(self._estimate)
        self.container = Container([self._button, self._text], gap=4)

    def forget(self) -> None:
        """Take back what was said: it was of other settings."""
        put(self._text, text="")

    def _estimate(self) -> None:
        settings = self._settings()
        name = settings.model.encoder
        put(self._button, loading=True)
        self._say(f"Measuring {name} on this machine…")
        try:
            seconds = measure(settings)
        except PaceUnknown as unknown:
            self._say(f"{name} could not be measured: {unknown}.", "warning")
        else:
            whole = duration(seconds * settings.iterations)
            self._measured(name, f"{seconds:.2g} s")
            self._say(
                f"{name} takes about {seconds:.2g} s an iteration here with these settings: {settings.iterations} "
                f"iterations take about {whole}, besides the measurements."
            )
        finally:
            put(self._button, loading=False)
            send()

    def _say(self, sentence: str, kind: str = "info") -> None:
        self._text.set(escape(sentence, quote=False), kind)


class PaceUnknown(RuntimeError):
    """Nothing was measured; the text says why."""


def measure(settings: TrainSettings) -> float:
    """Seconds an iteration on the device that a run would choose by itself.

    Raises:
        PaceUnknown: it cannot be computed here, or takes too long.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="pace-") as folder:
        file = Path(folder) / "settings.yaml"
        file.write_text(settings.to_yaml(), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-m", "train.run.pace", str(file), "auto"],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise PaceUnknown(f"a few iterations take longer than {LIMIT_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise PaceUnknown(lines[-1].rstrip(".") if lines else f"exit code {done.returncode}")
    return float(done.stdout.split()[-1])
