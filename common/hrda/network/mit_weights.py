"""Pretrained MiT encoders: the published ImageNet weights and files of one's own, read strictly."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Size, Tensor, nn

from common.hrda.catalogue import ENCODERS
from common.hrda.network.downloads import RemoteFile
from common.hrda.network.mit import HRDAMixVisionTransformer
from common.hrda.network.reference_weights import convert_encoder_state_dict, find_encoder

PUBLISHED_URL = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer"
"""Where mmsegmentation publishes SegFormer's ImageNet weights of MiT, under its own names."""
MIRROR = "PRETRAINED_WEIGHTS_URL"
"""Environment variable: another address that has the same files."""

_CONTAINERS = ("state_dict", "model")
_HEADS = ("head.", "decode_head.", "auxiliary_head.")
_FIRST_IN_SEGFORMER, _FIRST_IN_MMSEGMENTATION = "patch_embed1.proj.weight", "layers.0.0.projection.weight"
_NAMED = 3


class WeightsError(ValueError):
    """A file does not hold the weights that are asked for. The message names the file and what is wrong."""


@dataclass(frozen=True)
class EncoderWeights:
    """A complete MiT encoder."""

    encoder: str
    """Name in the catalogue."""
    state: Mapping[str, Tensor]
    """All its parameters, float32, under our names and mmsegmentation's."""
    left_out: tuple[str, ...] = ()
    """Names of what else the file holds: the classifier of ImageNet's classes, the decoder of a segmentor."""


def published_weights(encoder: str) -> RemoteFile:
    """The ImageNet weights of an encoder of the catalogue, as mmsegmentation or the mirror publishes them.

    Their licence is `ENCODERS[encoder].weights_licence`.

    Raises:
        DownloadError: the mirror's address is none.
    """
    address = os.environ.get(MIRROR) or PUBLISHED_URL
    return RemoteFile.from_url(f"{address.rstrip('/')}/{ENCODERS[encoder].weights_file}", of_owner=True)


def read_encoder(path: str | Path) -> EncoderWeights:
    """Read the MiT encoder in a file of tensors; nothing in it is executed.

    Understood are mmsegmentation's names and SegFormer's, alone or as the `backbone` of a segmentor. Every parameter
    of the encoder must be there, of the right shape, and nothing else but the layers of a classifier or decoder.

    Raises:
        WeightsError: the file cannot be read, holds no MiT encoder, or an incomplete or unknown one.
    """
    path = Path(path)
    state, left_out = _encoder_part(_tensors(path), path)
    if _FIRST_IN_SEGFORMER in state:
        try:
            state = convert_encoder_state_dict(state)
        except (KeyError, IndexError, RuntimeError) as error:
            raise WeightsError(f"{path} is no complete MiT encoder: {error.args[0]}") from error
    elif _FIRST_IN_MMSEGMENTATION not in state:
        raise WeightsError(
            f"{path} holds no MiT encoder: neither '{_FIRST_IN_SEGFORMER}' (SegFormer) nor "
            f"'{_FIRST_IN_MMSEGMENTATION}' (mmsegmentation) is in it, but {_some(state)}."
        )
    try:
        encoder = find_encoder(state)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    _require_complete(state, encoder, path)
    return EncoderWeights(encoder, {name: value.float() for name, value in state.items()}, left_out)


def load_encoder(module: nn.Module, weights: EncoderWeights) -> None:
    """Put the weights into an encoder of the catalogue, all of it.

    Raises:
        WeightsError: it is another encoder.
    """
    try:
        module.load_state_dict(weights.state, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"The weights are of {weights.encoder} and fit no other encoder.") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"There is no file {path}. Give the path of a .pth file of weights.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(f"{path} is not a file of weights, or it is damaged.") from error
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    is_state = isinstance(content, Mapping) and len(content) > 0
    if not is_state or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in content.items()):
        raise WeightsError(f"{path} holds other things than weights by name. Expected a state dict of a MiT encoder.")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _encoder_part(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The encoder, its names without a prefix, and the names of the layers that follow it."""
    is_segmentor = any(name.startswith("backbone.") for name in state)
    heads = _HEADS if is_segmentor else _HEADS[:1]
    left_out = tuple(name for name in state if name.startswith(heads))
    encoder = {name: value for name, value in state.items() if name not in left_out}
    if is_segmentor:
        foreign = [name for name in encoder if not name.startswith("backbone.")]
        if foreign:
            raise WeightsError(f"{path} holds more than an encoder and a decoder: {_some(foreign)}.")
        encoder = {name.removeprefix("backbone."): value for name, value in encoder.items()}
    return encoder, left_out


def _require_complete(state: Mapping[str, Tensor], encoder: str, path: Path) -> None:
    wanted = _shapes(encoder)
    problems = {
        "lacks": [name for name in wanted if name not in state],
        "has the unknown": [name for name in state if name not in wanted],
        "has another shape of": [n for n in wanted if n in state and state[n].shape != wanted[n]],
        "has no finite numbers in": [n for n, value in state.items() if not torch.isfinite(value).all()],
    }
    found = [f"it {problem} {_some(names)}" for problem, names in problems.items() if names]
    if found:
        raise WeightsError(f"{path} is no complete {encoder}: {'; '.join(found)}.")


@cache
def _shapes(encoder: str) -> dict[str, Size]:
    """The parameters' shapes by name."""
    # Takes no memory and draws no random numbers: those of a run must not depend on the file that it starts from.
    with torch.device("meta"):
        return {name: value.shape for name, value in HRDAMixVisionTransformer(encoder).state_dict().items()}


def _some(names: Mapping[str, object] | list[str]) -> str:
    """The first few of `names`."""
    shown = ", ".join(f"'{name}'" for name in list(names)[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
