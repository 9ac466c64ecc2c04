"""Trainings that are killed at a chosen moment, as if from outside: run in a child process."""

import io
import os
import signal
from pathlib import Path

import cv2
import torch

from train.run.engine import run
from train.run.preparation import Domains
from train.run.request import RunRequest
from train.settings.training import TrainSettings


def train_and_be_killed(settings: str, domains: Domains, out: Path, file: str, moment: str) -> None:
    """Resume the run in `out` and end by SIGKILL when `file` is written.

    Args:
        settings: as YAML.
        domains: of the run.
        out: its folder.
        file: name of the file.
        moment: 'half' way through its content, before it is 'renamed' to its name, or when it is 'done'.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    save, replace = torch.save, Path.replace

    def save_half(content, target) -> None:
        whole = io.BytesIO()
        save(content, whole)
        is_it = moment == "half" and Path(target.name).name.startswith(f".{file}")
        target.write(whole.getvalue()[: len(whole.getvalue()) // 2 if is_it else None])
        if is_it:
            target.flush()
            die()

    def replace_or_die(path: Path, target: Path) -> Path:
        if target.name == file and moment == "renamed":
            die()
        result = replace(path, target)
        if target.name == file:
            die()
        return result

    torch.save, Path.replace = save_half, replace_or_die
    run(RunRequest(TrainSettings.from_yaml(settings), domains, out, device="cpu", resume=True))


def die() -> None:
    """End this process without a chance to clean up."""
    os.kill(os.getpid(), signal.SIGKILL)
