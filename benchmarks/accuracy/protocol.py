"""What the trainings have in common, and running one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.arms import ALL, FIRST_PHASE, Training
from benchmarks.accuracy.photos import Folds, write_part
from common.hrda import SettingsError, load_checkpoint
from sandbox.synthetic.projects import CLASS_NAME
from train.settings.training import RANDOM, TrainSettings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Protocol:
    """What every training of a comparison has in common."""

    out: Path
    settings: TrainSettings
    """Of all arms, before the changes of each."""
    source: str
    target: str
    meta: Path
    """The file `meta.json` of the labelled real photos."""
    folds: Folds
    device: str
    threads: int
    """Of one training, on the CPU."""

    def folder(self, training: Training) -> Path:
        """Where a training writes."""
        return self.out / "runs" / training.name

    def checkpoint(self, training: Training) -> Path:
        """The better of student and teacher of a training that is done."""
        return self.folder(training) / "checkpoints" / "best.pth"

    def settings_of(self, training: Training) -> TrainSettings:
        """The settings of a training."""
        arm = ALL[training.arm]
        iterations = arm.length * self.settings.iterations
        # Measured at its end alone: no arm gets to choose among more networks than another.
        length = (f"iterations={iterations}", f"validation.interval={iterations}")
        # What goes on from a first phase has its encoder from there.
        start = (f"pretrained={RANDOM}",) if arm.goes_on else ()
        own = (f"mode={arm.mode}", f"seed={training.seed}")
        return self.settings.with_overrides([*length, *arm.changes, *start, *own])

    def write_parts(self) -> None:
        """Write the projects of real photos that `domains` names. Once, before trainings that run side by side."""
        choosing = [record for fold in self.folds.choosing for record in fold]
        write_part(self.out / "choosing", choosing, self.meta)
        for fold, left_out in enumerate(self.folds.choosing):
            write_part(self.out / f"fold{fold}" / "learnt", self.folds.left_in(fold), self.meta)
            write_part(self.out / f"fold{fold}" / "choosing", left_out, self.meta)

    def domains(self, training: Training) -> dict[str, str]:
        """Options of the command line that say which photos a training sees."""
        if training.fold is None:
            domains = {"source": self.source, "val": str(self.out / "choosing")}
            return domains | ({"target": self.target} if ALL[training.arm].mode == "uda" else {})
        folder = self.out / f"fold{training.fold}"
        return {"source": str(folder / "learnt"), "val": str(folder / "choosing")}

    def is_done(self, training: Training) -> bool:
        """Whether a training came to its end.

        Raises:
            SettingsError: its folder holds a run with other settings.
        """
        folder, settings = self.folder(training), self.settings_of(training)
        if not (folder / "settings.yaml").is_file():
            return False
        if TrainSettings.from_yaml((folder / "settings.yaml").read_text(encoding="utf-8")) != settings:
            raise SettingsError(f"{folder} holds a run with other settings: choose another --out, or remove it.")
        last = folder / "checkpoints" / "last.pth"
        return last.is_file() and load_checkpoint(last).iteration >= settings.iterations

    def run(self, training: Training) -> None:
        """Train, or go on with a training, and wait for its end.

        Raises:
            RuntimeError: it failed; the message holds its own.
        """
        folder = self.folder(training)
        folder.mkdir(parents=True, exist_ok=True)
        wanted = self.out / "settings" / f"{training.name}.yaml"
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.write_text(self.settings_of(training).to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "train", f"--settings={wanted}", f"--out={folder}", f"--classes={CLASS_NAME}"]
        command += [f"--device={self.device}", *(f"--{role}={spec}" for role, spec in self.domains(training).items())]
        if (folder / "resume.json").is_file():
            command += ["--resume"]
        elif ALL[training.arm].goes_on:
            command += [f"--init={self.checkpoint(Training(FIRST_PHASE, training.seed))}"]
        log = folder / "log.txt"
        with log.open("a", encoding="utf-8") as file:
            env = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            code = subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT).returncode
        if code or not self.is_done(training):
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            raise RuntimeError("\n".join([f"The training {training.name} did not come to its end ({log}):", *last]))
        print(f"{training.name} is trained.", flush=True)
