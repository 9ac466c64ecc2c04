"""`python -m train suggest`: which photos of the target to label next."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from train.stopping import tell

if TYPE_CHECKING:
    from train.run.suggestions import Suggestion

FILE = "suggest.csv"
_COLUMNS = ("rank", "photo", "uncertainty", "distance", "path")
_BETWEEN_LINES = 25


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m train suggest",
        description="Rank unlabelled target photos by how much a label would help: those of which the run's teacher is "
        "unsure, and which differ from each other and from the labelled ones. Label some, and train on with "
        "--labelled-target.",
    )
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="folder of a run (its --out)")
    parser.add_argument(
        "--target", metavar="DIR[:DATASET]", help="photos to choose from (default: those the run adapted to)"
    )
    parser.add_argument("--count", metavar="N", type=_count, default=10, help="photos to suggest (default: 10)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more. Received: {text[:80]}")
    return count


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 done, 2 refused with a reason."""
    given = parse(arguments)

    from common.data.images import ImageError
    from common.data.project import ProjectError
    from common.hrda import SettingsError
    from common.hrda.checks import CheckpointError
    from common.hrda.files import WriteError, replacing

    try:
        found = _suggest(given)
        with replacing(given.run / FILE) as file:
            file.write(table_of(found).encode())
    except WriteError as error:
        tell(f"error: {error} {error.remedy.capitalize()}.", sys.stderr)
        return 2
    except (SettingsError, ProjectError, CheckpointError, ImageError) as error:
        tell(f"error: {error}", sys.stderr)
        return 2
    width = max(len(one.photo) for one in found)
    tell(f"rank  {'photo':<{width}}  uncertainty  distance", sys.stdout)
    for rank, one in enumerate(found, 1):
        distance = "-" if one.distance is None else f"{one.distance:.2f}"
        tell(f"{rank:>4}  {one.photo:<{width}}  {one.uncertainty:>11.4f}  {distance:>8}", sys.stdout)
    tell(f"saved {given.run / FILE}", sys.stdout)
    return 0


def table_of(found: Sequence[Suggestion]) -> str:
    """The suggestions as CSV, the best first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for rank, one in enumerate(found, 1):
        distance = "" if one.distance is None else f"{one.distance:.4f}"
        writer.writerow([rank, one.photo, f"{one.uncertainty:.6f}", distance, one.path])
    return text.getvalue()


def _suggest(given: argparse.Namespace) -> list[Suggestion]:
    """The photos to label next.

    Raises:
        SettingsError, CheckpointError: the folder has no run, or its target is not known.
        ProjectError, ImageError: photos that cannot be used.
    """
    from common.data.overlap import shared_photos
    from common.data.project import open_project
    from common.hrda import InferenceSettings, Predictor, SettingsError, load_checkpoint
    from train.importing.imported import Reading, imported
    from train.run.device import find_device
    from train.run.folder import RunFolder
    from train.run.suggestions import suggest

    folder = RunFolder(given.run)
    path = next((path for path in (folder.best, folder.last) if path.is_file()), None)
    if path is None:
        raise SettingsError(f"{given.run} has no checkpoint of a run. Give the folder of a run, its --out.")
    domains = folder.domains()
    spec = given.target or domains.get("target")
    if spec is None:
        raise SettingsError(f"The run in {given.run} does not say which target photos it had. Name them: --target.")
    take = partial(imported, cache_dir=folder.cache, reading=Reading(partial(tell, stream=sys.stdout)))
    target = open_project(take(spec, labelled=False))
    labelled = [open_project(take(domains[role])) for role in ("labelled_target", "val") if domains.get(role)]
    known = [record for project in labelled for record in project]
    shared = set(shared_photos(target, known))
    photos = [record for record in target if record.key not in shared]
    if not photos:
        raise SettingsError(f"All photos of {spec} are labelled already.")
    bundle, device = load_checkpoint(path), find_device(given.device)
    windows = InferenceSettings.from_dict(bundle.settings.get("inference", {}))
    predictor = Predictor(bundle.teacher or bundle.student, windows, device, bundle.input_scale)

    def seen(done: int, total: int) -> None:
        if done % _BETWEEN_LINES == 0 or done == total:
            tell(f"looked at {done} of {total} photos", sys.stdout)

    return suggest(photos, known, predictor, given.count, seen)
