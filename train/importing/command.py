"""`python -m train import`: photos and labels of another format, written as a project in Supervisely's format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
FOLDER is one of
  photos and masks   a folder `images` (or photos, img, …) beside a folder `masks` (or labels, gt, …) of PNGs of the
                     same names: class indices, with or without a palette, 0 and 255, or colours that classes.json names
  COCO               photos and JSON files with polygons or RLE
  Pascal VOC         JPEGImages and SegmentationClass
  Cityscapes         leftImg8bit and gtFine
  photos alone       for a target
docs/import.md says more. `python -m train --source FOLDER …` takes the same folders without this command.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m train import",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="photos, and their labels unless they lie elsewhere"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the project, made anew")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--masks", metavar="DIR", type=Path, help="folder of the masks, where they lie elsewhere")
    labels.add_argument("--coco", metavar="FILE", type=Path, help="COCO's JSON file, where it lies elsewhere")
    labels.add_argument("--unlabelled", action="store_true", help="take the photos alone")
    parser.add_argument(
        "--classes",
        metavar="A,B",
        help="names of the values of masks, from 0 where the first is background, else from 1 (default: those of "
        "classes.json or another file beside the masks, else class_1, class_2, … or foreground)",
    )
    parser.add_argument("--skip-broken", action="store_true", help="go on without photos whose labels cannot be used")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 done, 2 refused with a reason."""
    given = parse(arguments)
    # Seconds of imports, which --help does without.
    from common.data.folders import ProjectError
    from common.hrda import SettingsError
    from common.hrda.files import WriteError

    try:
        import_folder(given)
    except (ProjectError, SettingsError) as error:
        reason = str(error)
    except WriteError as error:
        reason = f"{error} {error.remedy.capitalize()}."
    else:
        return 0
    print(f"error: {reason}", file=sys.stderr)
    return 2


def import_folder(given: argparse.Namespace) -> None:
    """Write the project that the arguments ask for.

    Raises:
        ProjectError: there is nothing to import, labels cannot be used, or the folder of the project is taken.
        SettingsError: names of classes that cannot be read.
        WriteError: the project cannot be written.
    """
    from common.data.folders import ImageRecord, ProjectError, is_of_project, what_to_write
    from common.paths import is_file, is_folder
    from train.importing.imported import Reading, find_source, write_project
    from train.run.request import read_classes

    names = read_classes(given.classes)
    for path, is_there in ((given.folder, is_folder), (given.masks, is_folder), (given.coco, is_file)):
        if path is not None and not is_there(path):
            raise ProjectError(f"There is nothing at {path}.")
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise ProjectError(f"{given.out} is there already. Name another folder with --out, or remove it.")
    if is_of_project(given.folder):
        raise ProjectError(
            f"{given.folder} is of a project in Supervisely's format: it needs no import, train with it as it is."
        )
    source = find_source(given.folder, names=names, masks=given.masks, coco=given.coco)
    if source is None:
        raise ProjectError(f"There is no photo in {given.folder}. {what_to_write(given.folder)}")
    records = source.records
    if given.unlabelled:
        records = tuple(ImageRecord(one.dataset, one.name, one.image_path, None) for one in records)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_project(source, records, given.out, Reading(lambda text: print(text, flush=True), given.skip_broken))
