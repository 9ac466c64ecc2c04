"""Weights to start from: chosen and fetched before any work, put into the network when it is built."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from common.hrda import HRDASegmentor, SelfTrainingSettings, SettingsError
from common.hrda.catalogue import is_non_commercial
from common.hrda.checkpoints import CheckpointBundle, bundle_of, is_checkpoint
from common.hrda.checks import CheckpointError
from common.hrda.metadata import WeightsOrigin
from common.hrda.network.downloads import DownloadError, Progress
from common.hrda.network.encoder_weights import (
    RANDOM_WEIGHTS,
    encoder_of,
    fetch_from,
    fetch_published,
    file_origin,
    load_encoder,
    published_origin,
    read_encoder,
)
from common.hrda.tensor_files import EncoderWeights, read_tensors
from common.paths import at_home, is_file
from common.plain_yaml import read_yaml
from train.settings.training import AUTO, IMAGENET, RANDOM, TrainSettings

_SECONDS_BETWEEN_REPORTS = 1.0
_LAST_LAYER = ".conv_seg."
_FINE_BRANCH = "decode_head.head.fine."
"""In names of weights: the layers that have a row for each class."""
_MOST_LISTED = 8


@dataclass(frozen=True)
class Start:
    """What a run starts from; all of it is on this machine."""

    checkpoint: Path | None = None
    """Weights of encoder and, where it fits, decoder."""
    encoder: Path | None = None
    """Weights of a pretrained encoder, which the feature distance compares with too."""
    pretrained: str = RANDOM
    """The setting `pretrained` as it came out: never 'auto'."""


def require_start(settings: TrainSettings, init_checkpoint: Path | None) -> None:
    """Make sure, without a look at any server, that the run has something to start from.

    Raises:
        SettingsError: the file is missing, or the feature distance is on without any weights to compare with.
    """
    if init_checkpoint is not None and not is_file(init_checkpoint):
        raise SettingsError(f"There are no initial weights at {init_checkpoint}. Give the path of a .pth file.")
    if init_checkpoint is None and settings.pretrained == RANDOM and _compares(settings.self_training):
        raise SettingsError(
            "self_training.feature_distance_weight holds the encoder near its initial weights, which would be random. "
            f"Set pretrained: {IMAGENET} (or the path of an encoder's weights), or set it to 0."
        )


def choose_start(
    settings: TrainSettings,
    init_checkpoint: Path | None,
    say: Callable[[str], None],
    progress: Progress | None = None,
    *,
    resumed_from: str | None = None,
) -> Start:
    """Find out what to start from and fetch what is not on this machine.

    Weights given as `init_checkpoint`, or those of the run that is resumed, come before `pretrained`, which then is
    only what the feature distance compares with.

    Args:
        settings: of the run.
        init_checkpoint: weights to start from.
        say: gets sentences about what is used, and under which licence.
        progress: of a download.
        resumed_from: what `pretrained` came out as when the run was started; None: it is not resumed.

    Raises:
        SettingsError: weights that are asked for cannot be had, or are of another encoder.
    """
    wanted = settings.pretrained
    if wanted == AUTO and resumed_from is not None:
        wanted = resumed_from
    require_start(replace(settings, pretrained=wanted), init_checkpoint)
    if init_checkpoint is not None and resumed_from is None:
        _require_encoder(init_checkpoint, settings.model.encoder)
    has_weights = init_checkpoint is not None or resumed_from is not None
    if wanted == RANDOM or (has_weights and not _compares(settings.self_training)):
        return Start(init_checkpoint, None, wanted if resumed_from is not None else RANDOM)
    if wanted == AUTO and (unasked := unasked_weights(settings.model.encoder)):
        if _compares(settings.self_training) and not has_weights:
            raise SettingsError(
                f"{unasked} self_training.feature_distance_weight compares with them: ask, or set it to 0."
            )
        say(unasked if has_weights else f"The encoder starts from random weights. {unasked}")
        return Start(init_checkpoint)
    try:
        path = _fetched(wanted, settings, _at_times(progress))
    except DownloadError as error:
        if wanted != AUTO or (_compares(settings.self_training) and not has_weights):
            raise SettingsError(f"{error} Or set pretrained: {RANDOM}, to start from random weights.") from error
        say(f"The published weights are not used: {error}")
        return Start(init_checkpoint)
    encoder = settings.model.encoder
    _read(path, encoder)
    if wanted in (AUTO, IMAGENET):
        wanted, origin = IMAGENET, published_origin(encoder)
        say(f"Published weights of {encoder}: {origin.source}. Licence: {origin.licence}; it holds for the result too.")
    return Start(init_checkpoint, path, wanted)


def unasked_weights(encoder: str) -> str | None:
    """Why the published weights of an encoder are not taken unless they are asked for by name; None if they are.

    Raises:
        SettingsError: the encoder's library is not installed.
    """
    origin = published_origin(encoder)
    if not is_non_commercial(origin.licence):
        return None
    return (
        f"The published weights of {encoder} are non-commercial ({origin.licence}) and are taken only where they are "
        f"asked for, with pretrained: {IMAGENET}."
    )


def on_this_machine(start: Start, settings: TrainSettings) -> Start:
    """What another process has chosen, fetched anew where that process ran on another machine.

    Raises:
        SettingsError: it cannot be had here.
    """
    if start.encoder is None or start.encoder.is_file():
        return start
    try:
        return replace(start, encoder=_fetched(start.pretrained, settings, None))
    except DownloadError as error:
        raise SettingsError(str(error)) from error


def start_from(
    student: HRDASegmentor, start: Start, classes: Sequence[str], say: Callable[[str], None]
) -> WeightsOrigin:
    """Put the weights to start from into `student`, which keeps its random ones where there are none.

    Args:
        student: on the CPU.
        start: what it starts from.
        classes: the names of its classes, by index.
        say: gets a sentence about it.

    Returns:
        Where the encoder's weights come from.

    Raises:
        SettingsError: they do not fit.
    """
    if start.checkpoint is not None:
        said, origin = load_initial_weights(student, start.checkpoint, classes)
        say(f"{said} Its encoder's weights: {origin.source}. Licence: {origin.licence}; it holds for the result too.")
        return origin
    if start.encoder is None:
        return RANDOM_WEIGHTS
    say(load_pretrained_encoder(student.backbone, start.encoder))
    return published_origin(student.backbone.encoder) if start.pretrained == IMAGENET else file_origin(start.encoder)


def frozen_encoder(student: HRDASegmentor, start: Start, settings: SelfTrainingSettings) -> nn.Module | None:
    """The encoder that the feature distance compares with: the pretrained one, or the student's as it starts.

    Args:
        student: with the weights that it starts from, on its device.
        start: what it starts from.
        settings: with the weight of the feature distance.

    Returns:
        None if the feature distance is off.
    """
    if not _compares(settings):
        return None
    encoder = copy.deepcopy(student.backbone)
    if start.encoder is not None:
        load_pretrained_encoder(encoder, start.encoder)
    return encoder.eval().requires_grad_(False)


def load_pretrained_encoder(encoder: nn.Module, path: Path) -> str:
    """Put the weights of a file into an encoder, all of it.

    Returns:
        A sentence that says what was loaded and what of the file was not.

    Raises:
        SettingsError: the file cannot be read, or holds another encoder.
    """
    return _load_encoder(encoder, _read(path, encoder.encoder), path)


def load_initial_weights(student: HRDASegmentor, path: Path, classes: Sequence[str]) -> tuple[str, WeightsOrigin]:
    """Put the weights of a file into `student`: its encoder's, and its decoder's where that is built alike.

    The decoder's last layers have a row for each class. Rows are matched by the classes' names: those of classes that
    the file has go to their place here, those of the others stay as `student` has them. A fine branch that one of both
    lacks is no other decoder: it begins as if it were not there.

    Args:
        student: receives the weights, on the CPU.
        path: a checkpoint of HRDA, or weights of an encoder as `pretrained` takes them.
        classes: the names of the student's classes, by index.

    Returns:
        A sentence that says what was loaded, and where the encoder's weights come from.

    Raises:
        SettingsError: the file cannot be read or holds another encoder.
    """
    opened = _opened(path, student.backbone.encoder)
    if isinstance(opened, EncoderWeights):
        return _load_encoder(student.backbone, opened, path), file_origin(path)
    return _load_bundle(student, opened, path, classes), opened.metadata.weights_origin or file_origin(path)


def _load_bundle(student: HRDASegmentor, bundle: CheckpointBundle, path: Path, classes: Sequence[str]) -> str:
    state, own = bundle.model.state_dict(), student.state_dict()
    joined = _with_rows_by_name(state, bundle.classes, own, classes)
    if joined is not None:
        student.load_state_dict(joined)
        return _rows_said(bundle.classes, classes, path) + _fine_branch_said(state, own)
    try:
        student.backbone.load_state_dict(
            {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
        )
    except RuntimeError as error:
        raise SettingsError(
            f"The encoder in {path} is not the one of the settings. Set model.encoder to the one it was trained with."
        ) from error
    return (
        f"Encoder weights loaded from {path}; its decoder has other channels or another attention and starts from "
        "random weights."
    )


def _opened(path: Path, encoder: str) -> CheckpointBundle | EncoderWeights:
    """A checkpoint, or the weights of `encoder`."""
    try:
        content = read_tensors(path, "a checkpoint or a file of weights")
        return bundle_of(content, path) if is_checkpoint(content) else encoder_of(content, path, encoder)
    except CheckpointError as error:
        raise SettingsError(f"There is nothing to start from: {error}") from error


def _require_encoder(path: Path, encoder: str) -> None:
    """Refuse initial weights that cannot be used before masks are drawn, which can take an hour."""
    opened = _opened(path, encoder)
    if isinstance(opened, CheckpointBundle) and (found := opened.metadata.model.encoder) != encoder:
        raise SettingsError(
            f"The encoder in {path} is {found}, and model.encoder is {encoder}. Set model.encoder to {found}."
        )


def _load_encoder(encoder: nn.Module, weights: EncoderWeights, path: Path) -> str:
    try:
        load_encoder(encoder, weights)
    except CheckpointError as error:
        raise SettingsError(
            f"The encoder in {path} is {weights.encoder}, not the one of the settings. Set model.encoder to it."
        ) from error
    left_out = f" Left out: {_listed(weights.left_out)}." if weights.left_out else ""
    return f"Encoder weights loaded from {path}; the decoder starts from random weights.{left_out}"


def _with_rows_by_name(
    state: Mapping[str, Tensor], had: Sequence[str], own: Mapping[str, Tensor], classes: Sequence[str]
) -> dict[str, Tensor] | None:
    """The weights `state` for a network that has `own`, rows of classes in their place; None if other shapes differ.

    Args:
        state: of a checkpoint.
        had: the names of its classes.
        own: of the network to start.
        classes: the names of its classes.
    """
    if any(_FINE_BRANCH not in name for name in state.keys() ^ own.keys()):
        return None
    rows = [(place, had.index(name)) for place, name in enumerate(classes) if name in had]
    joined = {}
    for name, value in own.items():
        found = state.get(name, value)
        by_class = _LAST_LAYER in name and (len(value), len(found)) == (len(classes), len(had))
        if found.shape[by_class:] != value.shape[by_class:]:
            return None
        joined[name] = found
        if by_class:
            joined[name] = value.clone()
            for place, former in rows:
                joined[name][place] = found[former]
    return joined


def _rows_said(had: Sequence[str], classes: Sequence[str], path: Path) -> str:
    """What became of the decoder's rows, class by class."""
    if tuple(had) == tuple(classes):
        return f"All weights loaded from {path}."
    kept = [name for name in classes if name in had]
    new = [name for name in classes if name not in had]
    gone = [name for name in had if name not in classes]
    if not new and not gone:
        return (
            f"All weights loaded from {path}, which has the same classes in another order: the decoder's rows were put "
            f"into the order of this run, {_names(classes)}."
        )
    groups = {"kept": kept, "starting from random weights": new, "left out": gone}
    said = [f"{what}: {_names(names)}" for what, names in groups.items() if names]
    return f"Weights loaded from {path}. Its decoder's rows are matched by class name; {'; '.join(said)}."


def _fine_branch_said(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    had, has = (any(_FINE_BRANCH in name for name in names) for names in (state, own))
    return "" if had == has else f" The fine branch is {'new' if has else 'left out'}."


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _compares(settings: SelfTrainingSettings) -> bool:
    return settings.feature_distance_weight > 0


def _fetched(pretrained: str, settings: TrainSettings, progress: Progress | None) -> Path:
    if pretrained in (AUTO, IMAGENET):
        return fetch_published(settings.model.encoder, progress)
    if "://" in pretrained:
        return fetch_from(pretrained, settings.model.encoder, progress)
    return at_home(pretrained)


def _read(path: Path, encoder: str) -> EncoderWeights:
    try:
        return read_encoder(path, encoder)
    except CheckpointError as error:
        raise SettingsError(str(error)) from error


def _at_times(progress: Progress | None) -> Progress | None:
    """`progress`, told at most once a second and of the end."""
    last = float("-inf")

    def report(name: str, received: int, size: int | None) -> None:
        nonlocal last
        if received == size or time.monotonic() - last >= _SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            progress(name, received, size)

    return None if progress is None else report


def _listed(names: tuple[str, ...]) -> str:
    """Names, many of one layer as their number."""
    groups: dict[str, int] = {}
    for name in names:
        groups[name.partition(".")[0]] = groups.get(name.partition(".")[0], 0) + 1
    return ", ".join(names) if len(names) <= 4 else ", ".join(f"{count} of {name}" for name, count in groups.items())


def recorded_pretrained(settings_file: Path) -> str:
    """What `pretrained` came out as in an earlier run, by its settings; 'none' where they do not say."""
    try:
        settings = read_yaml(settings_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SettingsError):
        return RANDOM
    found = settings.get("pretrained", RANDOM) if isinstance(settings, Mapping) else RANDOM
    return found if isinstance(found, str) and found != AUTO else RANDOM
