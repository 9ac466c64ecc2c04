"""What the trainings have in common, and running one of them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.arms import ALL, FROM_RANDOM, Training
from benchmarks.accuracy.photos import Folds, ranked, write_part
from common.data.folders import ImageRecord
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

    def start_of(self, training: Training) -> Path | None:
        """The network that a training goes on from."""
        phase = ALL[training.arm].goes_on_from
        return None if phase is None else self.checkpoint(Training(phase, training.seed))

    def settings_of(self, training: Training) -> TrainSettings:
        """The settings of a training."""
        arm = ALL[training.arm]
        iterations = arm.length * self.settings.iterations
        # Measured at its end alone: no arm gets to choose among more networks than another.
        length = (f"iterations={iterations}", f"validation.interval={iterations}")
        if arm.goes_on_from is not None:
            # It has its encoder from there.
            start = (f"pretrained={RANDOM}",)
        else:
            start = (FROM_RANDOM,) if self.settings.pretrained == RANDOM else ()
        own = (f"mode={arm.mode}", f"seed={training.seed}")
        return self.settings.with_overrides([*length, *start, *arm.changes, *own])

    def write_parts(self) -> None:
        """Write the projects of real photos that `domains` names. Once, before trainings that run side by side."""
        choosing = [record for fold in self.folds.choosing for record in fold]
        write_part(self.out / "choosing", choosing, self.meta)
        # No training reads it; for benchmarks.choice.
        write_part(self.out / "reporting", [record for fold in self.folds.reporting for record in fold], self.meta)
        for fold, left_out in enumerate(self.folds.choosing):
            write_part(self.out / f"fold{fold}" / "learnt", self.folds.left_in(fold), self.meta)
            write_part(self.out / f"fold{fold}" / "choosing", left_out, self.meta)

    def labelled(self, training: Training) -> list[ImageRecord]:
        """The photos of the half that choices are made on which a training learns from instead."""
        arm = ALL[training.arm]
        if not arm.labels:
            return []
        photos = sorted((record for fold in self.folds.choosing for record in fold), key=lambda record: record.key)
        if arm.suggested:
            photos = ranked(photos, self.start_of(training), self.out / "suggested" / f"{training.name}.json")
        else:
            # Of one seed the few are among the many.
            random.Random(training.seed).shuffle(photos)
        return photos[: arm.labels]

    def left_to_choose_on(self, training: Training) -> tuple[tuple[ImageRecord, ...], ...]:
        """By fold, the photos that thresholds of a training are chosen on."""
        learnt = {record.key for record in self.labelled(training)}
        return tuple(tuple(record for record in fold if record.key not in learnt) for fold in self.folds.choosing)

    def own_threshold(self, training: Training) -> float:
        """The threshold that a training which had no photos to choose on has chosen without labels."""
        return load_checkpoint(self.checkpoint(training)).best_thresholds.get(CLASS_NAME, 0.5)

    def write_labelled(self, training: Training) -> None:
        """Write the projects of the labelled photos of a training, where it has some of its own."""
        if labelled := self.labelled(training):
            folder = self.out / "labelled" / training.name
            write_part(folder / "learnt", labelled, self.meta)
            if left := [record for fold in self.left_to_choose_on(training) for record in fold]:
                write_part(folder / "choosing", left, self.meta)

    def domains(self, training: Training) -> dict[str, str]:
        """Options of the command line that say which photos a training sees."""
        arm = ALL[training.arm]
        if training.fold is not None:
            folder = self.out / f"fold{training.fold}"
            return {"source": str(folder / "learnt"), "val": str(folder / "choosing")}
        domains = {"source": self.source} | ({"target": self.target} if arm.mode == "uda" else {})
        if not arm.labels:
            return domains | {"val": str(self.out / "choosing")}
        folder = self.out / "labelled" / training.name
        domains |= {"labelled-target": str(folder / "learnt")}
        return domains | ({"val": str(folder / "choosing")} if any(self.left_to_choose_on(training)) else {})

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
        self.write_labelled(training)
        wanted = self.out / "settings" / f"{training.name}.yaml"
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.write_text(self.settings_of(training).to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "train", f"--settings={wanted}", f"--out={folder}", f"--classes={CLASS_NAME}"]
        command += [f"--device={self.device}", *(f"--{role}={spec}" for role, spec in self.domains(training).items())]
        if (folder / "resume.json").is_file():
            command += ["--resume"]
        elif (start := self.start_of(training)) is not None:
            command += [f"--init={start}"]
        log = folder / "log.txt"
        with log.open("a", encoding="utf-8") as file:
            env = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            code = subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT).returncode
        if code or not self.is_done(training):
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            raise RuntimeError("\n".join([f"The training {training.name} did not come to its end ({log}):", *last]))
        print(f"{training.name} is trained.", flush=True)
