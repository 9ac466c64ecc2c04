"""`python -m serve batch`: collections of photos, on one machine or many."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.hrda.files import WriteError, sum_of
from common.paths import is_file
from common.processors import available_processors
from serve.batch import pipeline, rays
from serve.batch.collection import Collection, FolderCollection, Item, collection_of
from serve.batch.local import predicts_mosaics, settings_of_words
from serve.batch.manifest import FOLDER, Manifest
from serve.batch.outputs import FORMATS, chosen_formats, needs_of
from serve.batch.outputs.format import CONFIDENCES, OutputOptions
from serve.batch.photos import require_rasters
from serve.batch.plan import Plan, Task, Wanted, plan
from serve.batch.progress import Progress, summary
from serve.batch.result import Legend
from serve.batch.steps import Assignment, Uploader, part_name
from serve.batch.storage import HALF, Folder
from serve.batch.tiff import is_larger_than_photos, is_tiff, raster_options
from serve.batch.worker import WANTED, Worker
from serve.errors import RequestError
from serve.model.deployment import PYTORCH, RUNTIMES

DEFAULT_OUTPUT = "predictions"
DEFAULT_FORMAT = "masks"
UPLOADS = ("append", "replace", "iou_merge")
"""The SDK's names for what becomes of the labels that an image has."""
SOME_FAILED = 3
"""The exit status where some photos have no result."""


@dataclass(frozen=True)
class Instance:
    """How photos on a Supervisely instance are reached, for this part of the app knows no server."""

    collection: Callable[[int, Sequence[int]], Collection]
    """The images of a project, or of those of its datasets."""
    uploader: Callable[[int, str, Legend, Sequence[str], OutputOptions], Uploader]
    """Puts results into a project in a mode of `UPLOADS`; of the classes those that the project lacks are added now."""


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m serve batch",
        description="Predict a whole collection of photos, on this machine or on a Ray cluster. The same command again "
        "goes on where it was stopped, and does only what is missing.",
        epilog="example: python -m serve batch --model best.pth --input photos --output out --format masks,overlay",
    )
    parser.add_argument("--model", required=True, help="checkpoint on this machine; on a cluster, on every one")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", help="folder with its subfolders, a photo, a text file that names photos, or s3://bucket/folder"
    )
    source.add_argument("--project", type=int, help="a project on the instance, in place of --input")
    parser.add_argument("--dataset", default="", help="with --project: only these datasets, e.g. 45,46")
    parser.add_argument("--output", help=f"folder for results, or s3://bucket/folder ({DEFAULT_OUTPUT})")
    parser.add_argument(
        "--format", help=f"what is written: some of {', '.join(FORMATS)} ({DEFAULT_FORMAT}; with --upload none)"
    )
    parser.add_argument("--upload", choices=UPLOADS, help="with --project: also put labels on its images")
    parser.add_argument("--tolerance", type=float, metavar="PIXELS", help="how far polygons may run beside the border")
    parser.add_argument("--mm-per-pixel", type=float, metavar="MM", help="scale of the photos, for measures in mm")
    parser.add_argument("--bands", help="of a TIFF, those that are red, green, blue, such as 4,3,2")
    parser.add_argument("--range", metavar="LOW,HIGH", help="of a TIFF, samples that become 0 and 255 (percentiles)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: on GPUs, if any)")
    parser.add_argument("--runtime", choices=RUNTIMES, default=PYTORCH, help="what runs the network (%(default)s)")
    parser.add_argument("--workers", type=_positive, help="processes that predict (one a GPU, or one on the CPU)")
    parser.add_argument("--ray-address", help="a Ray cluster: auto, or HOST:PORT (default: Ray on this machine alone)")
    parser.add_argument(
        "--memory-mb",
        type=partial(_positive, least=100),
        default=1024,
        help="for photos that wait between the steps, from 100 (%(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    parser.add_argument(
        "--settings", nargs="*", help="a YAML or JSON file, or KEY=VALUE pairs as in inference_settings.yaml"
    )
    return parser


def main(argv: Sequence[str], instance: Callable[[], Instance]) -> int:
    """Run the command.

    Args:
        argv: its arguments.
        instance: called where photos on an instance are asked for.

    Returns:
        The exit status: 0, or 3 where some photos have no result.

    Raises:
        RequestError, SettingsError, CheckpointError, WriteError: what the user can mend.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.project is None and (args.upload or args.dataset):
        parser.error("--upload and --dataset need --project")
    datasets = _numbers(parser, args.dataset)
    with _stopped_by_signals():
        if args.project is None:
            photos, instances = collection_of(args.input), None
        else:
            instances = instance()
            photos = instances.collection(args.project, datasets)
        return _run(args, photos, instances)


def _run(args: argparse.Namespace, photos: Collection, instance: Instance | None) -> int:
    if not args.dry_run:
        rays.require_ray()
    items, left_out = photos.find()
    output = Folder((args.output or DEFAULT_OUTPUT).rstrip("/") or "/")
    if output.is_local:
        output = Folder(str(Path(output.address).resolve()))
    if isinstance(photos, FolderCollection) and f"{output.address}/".startswith(f"{photos.folder.address}/"):
        raise RequestError(
            f"Results in {output.address} would be photos for the next run, since it lies in {photos.says}. "
            "Choose another --output."
        )
    assignment, worker = _assignment(args, photos, output)
    legend = worker.legend
    with nullcontext() if args.dry_run else _alone_in(output):
        manifest = Manifest(output)
        entries = [entry.name for entry in output.entries()]
        found = plan(items, manifest, assignment.wanted, set(entries))
        found = replace(found, tasks=_mosaics_last(found.tasks, assignment, worker))
        _say_plan(found, items, photos, assignment, left_out)
        if args.dry_run:
            return 0
        for name in filter(HALF.match, entries):
            output.remove(name)
        wanted = assignment.wanted
        manifest.put_together()
        manifest.describe(wanted.model, wanted.settings_name, wanted.description)
        progress = Progress(len(found.tasks))
        try:
            if found.tasks:
                if args.upload and instance is not None:
                    uploader = instance.uploader(args.project, args.upload, legend, worker.labelled, assignment.options)
                    assignment = replace(assignment, uploader=uploader)
                _work(args, assignment, found, manifest, progress)
        finally:
            manifest.put_together()
        return _finish(assignment, items, manifest, found, progress, legend)


def _assignment(args: argparse.Namespace, photos: Collection, output: Folder) -> tuple[Assignment, Worker]:
    """What every step needs to know; checked before long work begins."""
    text = args.format or ("" if args.upload else DEFAULT_FORMAT)
    formats = chosen_formats(text) if text else ()
    settings = settings_of_words(args.settings or [])
    model, device = Path(args.model).resolve(), _device(args)
    if not is_file(model):
        raise RequestError(f"There is no checkpoint at {args.model}. Give the path of one as --model.")
    if not args.ray_address:
        _require_cards(args.workers, device)
    # Read here too: what is wrong with it, or with a setting, is said before anything starts.
    here = device if device == "cpu" or _has_gpu() else "cpu"
    worker = Worker.from_file(model, here, args.runtime, settings)
    options = worker.options(
        **{
            name: value
            for name, value in (("tolerance", args.tolerance), ("mm_per_pixel", args.mm_per_pixel))
            if value is not None
        }
    )
    told = worker.settings.to_dict() | {f"output {name}": value for name, value in options.to_dict().items()}
    told |= {WANTED: settings.get(WANTED), "runtime": args.runtime}
    raster = raster_options(args.bands, args.range)
    if raster is not None:
        require_rasters()
        told |= {f"samples {name}": value for name, value in raster.to_dict().items()}
    what = (*(each.name for each in formats), *([f"upload {args.upload}"] if args.upload else []))
    wanted = Wanted(sum_of(model), model.name, told, what)
    names = tuple(each.name for each in formats)
    needs = needs_of(formats) | (frozenset({CONFIDENCES}) if args.upload and options.confidence else frozenset())
    assignment = Assignment(
        photos, output, model, device, args.runtime, settings, names, options, wanted, needs, raster=raster
    )
    return assignment, worker


def _require_cards(workers: int | None, device: str) -> None:
    """Refuse more workers on GPUs than this machine has of them.

    Raises:
        RequestError: it says what to choose.
    """
    import torch

    count = torch.cuda.device_count()
    if device != "cpu" and count < (workers or 1):
        have = f"{count} GPU{'' if count == 1 else 's'}" if count else "no GPU"
        raise RequestError(
            f"Each worker takes a GPU, and this machine has {have} for {workers or 1}. "
            + (f"Ask for --workers {count}." if count else "Take --device cpu, or a cluster with --ray-address.")
        )


def _mosaics_last(tasks: Sequence[Task], assignment: Assignment, worker: Worker) -> list[Task]:
    """The tasks, those of mosaics each alone, where they can be told before they are fetched.

    Raises:
        RequestError, SettingsError: there are some, which cannot be predicted with what is installed and set.
    """
    mosaics = set()
    for task in tasks:
        file = assignment.photos.file_of(task.item) if is_tiff(task.item.name) else None
        if file is not None and file.folder.is_local and is_larger_than_photos(file.folder.path(file.name)):
            mosaics.add(task.item.name)
    if mosaics:
        predicts_mosaics(worker)
    return [replace(task, alone=True) if task.item.name in mosaics else task for task in tasks]


def _work(
    args: argparse.Namespace, assignment: Assignment, found: Plan, manifest: Manifest, progress: Progress
) -> None:
    machines = _machines(args, assignment.device)
    with _ray(args, machines):
        for record in pipeline.stream(assignment, found.tasks, machines):
            manifest.add(record)
            progress.add(record)


def _machines(args: argparse.Namespace, device: str) -> pipeline.Machines:
    import torch

    gpu = device != "cpu"
    workers = args.workers or (max(torch.cuda.device_count(), 1) if gpu else 1)
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(told) if told.isdecimal() and int(told) else max(available_processors() // workers, 1)
    return pipeline.Machines(workers, threads, gpu)


def _ray(args: argparse.Namespace, machines: pipeline.Machines) -> AbstractContextManager[None]:
    if args.ray_address:
        return rays.ray_at(args.ray_address)
    # Reading and writing have processors of their own by this count, which lets them run while workers compute.
    beside = max(available_processors() // 4, 1) + 1
    cpus = machines.workers * (1 if machines.gpu else machines.threads) + beside
    return rays.own_ray(cpus, machines.workers if machines.gpu else 0, args.memory_mb)


def _say_plan(found: Plan, items: Sequence[Item], photos: Collection, assignment: Assignment, left_out: str) -> None:
    """What was found and what will be done, on the terminal."""
    lines = [left_out] if left_out else []
    lines.append(f"{_count(items)} in {photos.says}, {len(found.done)} with a result in {assignment.output.address}.")
    lines += found.changes
    if found.tasks:
        why = ", ".join(f"{count} {reason}" for reason, count in found.why.items())
        what = ", ".join(assignment.wanted.formats)
        lines.append(f"{_count(found.tasks)} to predict with {assignment.model.name} on {assignment.device}: {why}.")
        lines.append(f"What is written: {what}.")
    print("\n".join(lines), flush=True)


def _finish(
    assignment: Assignment,
    items: Sequence[Item],
    manifest: Manifest,
    found: Plan,
    progress: Progress,
    legend: Legend,
) -> int:
    """Write what is made of all photos together, and tell what came out; the exit status."""
    records = {item.name: manifest.records[item.name] for item in items if item.name in manifest.records}
    done = sorted(name for name, record in records.items() if record.is_done)
    written = {file for name in done for file in records[name].result}
    for each in assignment.chosen:
        if each.merge is not None:
            folder = assignment.output.below(each.name)
            names = [part_name(each.merge.part, name) for name in done] if each.merge.part else []
            # A mosaic has none.
            parts = _Parts(assignment.output, [name for name in names if name in written])
            each.merge.write(parts, legend, assignment.options, folder.create)
    print(summary(records, len(found.done), progress, legend), flush=True)
    print(f"Written: {assignment.output.address}", flush=True)
    return SOME_FAILED if len(done) < len(items) else 0


@dataclass(frozen=True)
class _Parts:
    """Parts of all photos, read one by one each time that they are gone through."""

    folder: Folder
    names: Sequence[str]

    def __iter__(self) -> Iterator[bytes]:
        for name in self.names:
            try:
                content = self.folder.read(name)
            except OSError as error:
                raise RequestError(
                    f"{self.folder.address}/{name} cannot be read: {error}. Run the command again."
                ) from error
            yield content


@contextmanager
def _alone_in(output: Folder) -> Iterator[None]:
    """Keep two commands from working into one folder of this machine at a time.

    Raises:
        RequestError: another one does.
        WriteError: the folder cannot be written to.
    """
    if not output.is_local:
        yield
        return
    path = output.below(FOLDER).path("lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise WriteError(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RequestError(
                f"Another serve batch works into {output.address}. Wait until it has ended, or choose another --output."
            ) from error
        yield


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Within it, SIGTERM ends the command as Ctrl-C does: what is done is noted first."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", flush=True)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _device(args: argparse.Namespace) -> str:
    return args.device or ("cuda" if _has_gpu() else "cpu")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _numbers(parser: argparse.ArgumentParser, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        parser.error(f"--dataset takes numbers with commas between, such as 45,46. Received: {text[:80]}")
    return [int(word) for word in words]


def _positive(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text[:80]!r}")
    return int(text)


def _count(photos: Sequence[Any]) -> str:
    return "1 photo" if len(photos) == 1 else f"{len(photos)} photos"
