"""Whether adaptation helps, by a protocol that anyone can repeat: `python -m benchmarks.accuracy`.

Source: 300 generated photos of cracks in asphalt. Target: unlabelled real photos. A first phase on the source, the same
for all arms of a seed, comes before what they are compared in. The labelled real photos are dealt into two
halves: which of student and teacher is served, and the threshold, are chosen on the one; the figures are of the other.
The supervised arm learns from labelled real photos, four fifths at a time, and predicts the fifth that is left.

A training that is done is not repeated, and one that broke off goes on: run it again with the same --out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import cv2
import numpy as np

from benchmarks.accuracy.arms import ABLATIONS, ALL, ARMS, FIRST_PHASES, FOLDS, Training, first_phases, trainings
from benchmarks.accuracy.photos import Folds, labelled_photos, write_source
from benchmarks.accuracy.picture import draw
from benchmarks.accuracy.protocol import ROOT, Protocol
from benchmarks.accuracy.scores import (
    ELSEWHERE,
    Elsewhere,
    Figures,
    Photo,
    Predicted,
    best_threshold,
    by_threshold,
    pixels_of,
    predict,
    table,
    verdict,
)
from common.data.folders import ImageRecord, ProjectError, split_spec
from common.data.images import read_image
from common.data.project import open_project, prepare_labelled
from common.hrda import SettingsError
from sandbox.synthetic.projects import CLASS_NAME
from train.settings.training import TrainSettings

REAL = ROOT.parent / "shared" / "data" / "cracks_real"

PICTURE_PHOTOS = 6


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What the arms go on from: "
        + "; ".join(FIRST_PHASES)
        + ".\nArms of the comparison, all by default: "
        + "; ".join(ARMS)
        + ".\nAblations: "
        + "; ".join(ABLATIONS)
        + ".",
    )
    spec = "DIR[:DATASET]"
    parser.add_argument("--target", metavar=spec, default=f"{REAL}:target", help="unlabelled real photos")
    parser.add_argument("--labelled", metavar=spec, default=f"{REAL}:validation", help="labelled real photos")
    parser.add_argument(
        "--also", metavar=spec, action="append", default=[], help="other labelled photos to measure on; may be repeated"
    )
    parser.add_argument(
        "--arms", nargs="+", choices=ALL, default=list(ARMS), metavar="ARM", help="default: no ablation"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("settings.yaml"), help="of all arms")
    parser.add_argument("--encoder", metavar="NAME", help="of all arms; default: that of the settings")
    parser.add_argument(
        "--pretrained", type=Path, metavar="FILE", help="weights that the encoder starts from, see benchmarks.lite0"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="change one")
    parser.add_argument("--out", type=Path, required=True, help="folder for photos, trainings, table and picture")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, help="trainings at a time (default: one a processor, one on a GPU)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not trained yet, measure, and print the table; 2 where that is not possible."""
    given = parse(arguments)
    try:
        compare(given)
    except (ProjectError, SettingsError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def compare(given: argparse.Namespace) -> None:
    """The whole protocol."""
    photos = labelled_photos(given.labelled)
    if len(photos) < 2 * FOLDS:
        raise ProjectError(f"{given.labelled} has {len(photos)} photos with a crack; {2 * FOLDS} are needed.")
    open_project(given.target)
    processors = os.cpu_count() or 1
    jobs = given.jobs or (processors if given.device == "cpu" else 1)
    settings = TrainSettings.from_yaml(given.settings.read_text(encoding="utf-8"))
    encoder = [f"model.encoder={given.encoder}"] if given.encoder else []
    pretrained = [f"pretrained={given.pretrained.resolve()}"] if given.pretrained else []
    settings = settings.with_overrides([*encoder, *pretrained, *given.overrides])
    out = given.out.resolve()
    protocol = Protocol(
        out=out,
        settings=settings,
        source=write_source(out / "source"),
        target=given.target,
        meta=split_spec(given.labelled)[0] / "meta.json",
        folds=Folds.deal(photos, FOLDS),
        device=given.device,
        threads=max(processors // jobs, 1),
    )
    wanted = trainings(given.arms, given.seeds)
    first = first_phases(given.arms, given.seeds)
    # All of them before the first hour of work: it refuses other settings.
    missing = {training for training in (*first, *wanted) if not protocol.is_done(training)}
    protocol.write_parts()
    for phase in (first, wanted):
        train_all(protocol, [training for training in phase if training in missing], jobs)
    truths = read_photos(given.labelled, out / "masks")
    results: dict[str, list[Figures]] = {}
    columns: dict[str, list[Predicted]] = {}
    for arm in given.arms:
        for seed in given.seeds:
            own = [training for training in wanted if (training.arm, training.seed) == (arm, seed)]
            choosing, reporting = predicted(protocol, own, truths)
            threshold = best_threshold(choosing) if choosing else protocol.own_threshold(own[0])
            results.setdefault(arm, []).append(Figures.at(threshold, reporting))
            columns.setdefault(arm, reporting)
    parts = [table(results), "", *verdict(results)]
    for spec in given.also:
        parts += ["", f"On {spec}:", "", table(elsewhere(protocol, spec, given.arms, given.seeds, results), ELSEWHERE)]
    text = "\n".join(parts)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    shown = [truths[record.key] for fold in protocol.folds.reporting for record in fold][:PICTURE_PHOTOS]
    thresholds = {arm: figures[0].threshold for arm, figures in results.items()}
    draw(out / "picture.png", shown, {arm: column[:PICTURE_PHOTOS] for arm, column in columns.items()}, thresholds)


def train_all(protocol: Protocol, wanted: Sequence[Training], jobs: int) -> None:
    """Run trainings, `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        trained = [pool.submit(protocol.run, training) for training in wanted]
        try:
            for training in as_completed(trained):
                training.result()
        except BaseException:
            # Nobody waits hours for trainings whose table will not come.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_photos(spec: str, cache: Path) -> dict[str, Photo]:
    """Labelled photos by key."""
    labelled = prepare_labelled(open_project(spec), [CLASS_NAME], cache, role="validation", progress=lambda _: None)
    return {
        record.key: Photo(read_image(record.image_path), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED))
        for record, mask in labelled
    }


def predicted(
    protocol: Protocol, parts: Sequence[Training], truths: Mapping[str, Photo]
) -> tuple[list[Predicted], list[Predicted]]:
    """Both halves as one arm and seed predicts them, in the order of the folds."""
    halves: tuple[list[Predicted], list[Predicted]] = ([], [])
    for training in parts:
        folds_of = (protocol.left_to_choose_on(training), protocol.folds.reporting)
        for half, folds in zip(halves, folds_of, strict=True):
            records: list[ImageRecord] = [
                record for number, fold in enumerate(folds) if training.fold in (None, number) for record in fold
            ]
            half.extend(
                predict(protocol.checkpoint(training), (truths[record.key] for record in records), protocol.device)
            )
    return halves


def elsewhere(
    protocol: Protocol, spec: str, arms: Sequence[str], seeds: Sequence[int], results: Mapping[str, Sequence[Figures]]
) -> dict[str, list[Elsewhere]]:
    """The arms on all labelled photos of another set, at the thresholds that were chosen before.

    Of an arm with folds the first one is measured. Counts are kept: photos of a camera take minutes an arm.
    """
    folder = protocol.out / "also" / spec.strip("/").replace("/", "_")
    photos = read_photos(spec, folder / "masks")
    pixels = sum(pixels_of(photo.truth) for photo in photos.values())
    found: dict[str, list[Elsewhere]] = {}
    for arm in arms:
        for place, seed in enumerate(seeds):
            training = trainings([arm], [seed])[0]
            file = folder / f"{training.name}.npy"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                counts = by_threshold(predict(protocol.checkpoint(training), photos.values(), protocol.device))
                np.save(file, counts)
            found.setdefault(arm, []).append(Elsewhere.at(results[arm][place].threshold, np.load(file), pixels))
    return found


if __name__ == "__main__":
    sys.exit(main())
