"""docs/troubleshooting.md: what is printed where something is wrong, taken from commands that provoke it.

`PYTHONPATH=. python tests/documents/troubleshooting.py > docs/troubleshooting.md` writes the page anew; a test compares
both.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from sandbox.synthetic.projects import write_project
from serve.__main__ import main as serve
from train.__main__ import main as train
from train.run import memory_errors
from train.run.learner import Learner

HEAD = """# Troubleshooting

The ten most likely errors: what you did, what is said, and what to do. The page of Train HRDA and the service say the
same sentences as the command line. This page is written by `tests/documents/troubleshooting.py`, which provokes each
error, and a test compares it with what is really said.

An error that is not here says itself what to do. A result that is merely not good enough is in the
[guide](guide.md#what-to-do-when-it-did-not-help).
"""
TRAIN = "--source synthetic --target photos:unlabelled --val photos:checked --out runs/first"
HOME = "/home/you"
"""In place of the folder in which the errors were provoked."""
PREDICT = "predict photos/checked/img --model model.pth"


@dataclass(frozen=True)
class Case:
    """An error that a user is likely to meet."""

    title: str
    """What a user would call it."""
    command: str
    """What is typed: after `python -m`."""
    remedy: str
    """What to do, in more words than the error has."""
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    """In which circumstances."""


@contextlib.contextmanager
def a_run_is_there() -> Iterator[None]:
    """The folder of the run has a checkpoint of an earlier one."""
    checkpoint = Path("runs/first/checkpoints/last.pth")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"of a run")
    yield


@contextlib.contextmanager
def no_internet() -> Iterator[None]:
    """No name has an address."""
    with mock.patch.object(socket, "getaddrinfo", side_effect=socket.gaierror(-3, "Temporary failure")):
        yield


@contextlib.contextmanager
def small_gpu() -> Iterator[None]:
    """A graphics card on which two crops fit, and four do not."""

    def learn(_learner: Learner, batch, _done: int) -> dict[str, torch.Tensor]:
        if len(batch.source_images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return {}

    with (
        mock.patch.object(Learner, "learn", learn),
        mock.patch.object(memory_errors, "describe", lambda device: "cuda:0 (23.6 GiB)"),
    ):
        yield


@contextlib.contextmanager
def taken_port() -> Iterator[None]:
    """Another service listens at 8000."""
    bind = socket.socket.bind

    def refuse(self: socket.socket, address: tuple) -> None:
        if address[1] == 8000:
            raise OSError(98, "Address already in use")
        bind(self, address)

    Path("model.pth").write_bytes(b"a model")
    with mock.patch.object(socket.socket, "bind", refuse):
        yield
    Path("model.pth").unlink()


CASES = (
    Case(
        "The folder is not a project",
        "train --source photos/checked/img --target photos:unlabelled --val photos:checked --out runs/first",
        "A project is a folder with `meta.json` in it, and folders of datasets. Name the folder that holds "
        "`meta.json`, and a dataset behind a colon.",
    ),
    Case(
        "There is no target",
        "train --source synthetic --val photos:checked --out runs/first",
        "HRDA adapts to target photos, so name some with `--target`. Without any, train what can be trained without: "
        "`--mode source-only`.",
    ),
    Case(
        "A setting is mistyped",
        f"train {TRAIN} --set optimizer.learning_rate=1e-4",
        "All settings are in [train/hyperparameters.yaml](../train/hyperparameters.yaml), each with a sentence. In "
        "YAML the place counts too: `lr` belongs under `optimizer`.",
    ),
    Case(
        "A class is not there",
        f"train {TRAIN} --classes cracks",
        "Names are compared letter by letter, in source and validation alike. Leave `--classes` out to train all.",
    ),
    Case(
        "Photos are in two roles",
        "train --source synthetic --target photos:unlabelled --val synthetic --out runs/first",
        "A network that is measured on what it has learnt looks better than it is. Take other photos to measure on, or "
        "move them into a dataset of their own and name the datasets.",
    ),
    Case(
        "The folder holds a run already",
        f"train {TRAIN}",
        "Nothing is overwritten: `--resume` goes on with the run that is there, another `--out` begins anew.",
        a_run_is_there,
    ),
    Case(
        "Weights cannot be downloaded",
        f"train {TRAIN} --set model.encoder=mit_b0 --set pretrained=imagenet",
        "Put the file where the sentence says, from a machine that has internet; or begin with random weights, "
        "`pretrained=none`, and `self_training_start=0.375`. "
        "[Installing](installing.md#installations-without-internet) has more.",
        no_internet,
    ),
    Case(
        "The GPU's memory does not suffice",
        f"train {TRAIN} --set batch_size=4 --set model.encoder=mit_b0 --set compute.precision=float32",
        "The largest batch that fits was tried out. With `compute.accumulate` the batch stays as large as it was, in "
        "parts that follow each other. `compute.precision=bfloat16` and `compute.activation_checkpointing=true` save "
        "memory too.",
        small_gpu,
    ),
    Case(
        "There is no such checkpoint",
        f"serve {PREDICT}",
        "A path on this machine is relative to the folder in which you are. A checkpoint in Team Files has a path such "
        "as `/experiments/27_Cracks/265_HRDA/checkpoints/best.pth`, and needs the instance's variables.",
    ),
    Case(
        "The port is taken",
        "serve deploy --model model.pth",
        "Another service, perhaps this one, runs already. End it, or choose another port: `--port 8001`.",
        taken_port,
    ),
)


def said(case: Case) -> str:
    """What a case's command prints as its error, in a folder with the projects `synthetic` and `photos`."""
    program, *words = case.command.split()
    errors = io.StringIO()
    with case.around(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = {"train": train, "serve": serve}[program](words)
        except SystemExit as ended:
            code = ended.code
    if code != 2:
        raise AssertionError(f"{case.command} ended with {code}: {errors.getvalue()}")
    [sentence] = re.findall(r"error: (.+)", errors.getvalue())
    return sentence.replace(str(Path.cwd()), HOME)


@contextlib.contextmanager
def place() -> Iterator[None]:
    """A folder with a few photos, on a machine without instance, GPU and internet."""
    before = Path.cwd()
    variables = dict.fromkeys(("SERVER_ADDRESS", "API_TOKEN", "TEAM_ID"), "")
    variables |= {"PRETRAINED_WEIGHTS_DIR": "weights", "PRETRAINED_WEIGHTS_URL": ""}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, variables):
        os.chdir(folder)
        try:
            write_project(Path("synthetic"), "source", 4, size=(64, 64), workers=1)
            for name, count, seed in (("unlabelled", 4, 1), ("checked", 2, 2)):
                write_project(
                    Path("photos"), "real_like", count, seed=seed, size=(64, 64), workers=1, dataset=name,
                    labelled=name == "checked",
                )  # fmt: skip
            yield
        finally:
            os.chdir(before)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for number, case in enumerate(CASES, 1):
        with place():
            sentence = said(case)
        remedy = textwrap.fill(case.remedy, 120, break_long_words=False, break_on_hyphens=False)
        parts.append(f"\n## {number}. {case.title}\n\n`python -m {case.command}`\n\n> {sentence}\n\n{remedy}\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
