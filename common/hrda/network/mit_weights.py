"""Pretrained MiT encoders: the published ImageNet weights and files of one's own, read strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.hrda.catalogue import ENCODERS, MIT_SHAPES
from common.hrda.checks import CheckpointError
from common.hrda.network import downloads
from common.hrda.network.downloads import Progress, RemoteFile
from common.hrda.network.mit import HRDAMixVisionTransformer
from common.hrda.network.outline import outline
from common.hrda.network.reference_weights import convert_encoder_state_dict, find_encoder
from common.hrda.tensor_files import EncoderWeights, contained_weights, fitting, read_tensors

PUBLISHED_URL = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer"
"""Where mmsegmentation publishes SegFormer's ImageNet weights of MiT, under its own names."""
MIRROR = "PRETRAINED_WEIGHTS_URL"
"""Environment variable: another address that has the same files."""

_HEADS = ("head.", "decode_head.", "auxiliary_head.")
_FIRST_IN_SEGFORMER, _FIRST_IN_MMSEGMENTATION = "patch_embed1.proj.weight", "layers.0.0.projection.weight"


def published_weights(encoder: str) -> RemoteFile:
    """The ImageNet weights of an encoder of the catalogue, as mmsegmentation or the mirror publishes them.

    Their licence is `ENCODERS[encoder].weights_licence`.

    Raises:
        DownloadError: the mirror's address is none.
    """
    address = os.environ.get(MIRROR) or PUBLISHED_URL
    return RemoteFile.from_url(f"{address.rstrip('/')}/{ENCODERS[encoder].weights_source}", of_owner=True)


def fetch(encoder: str, progress: Progress | None = None) -> Path:
    """The published weights on this machine; downloaded unless they are here.

    Raises:
        DownloadError: they cannot be had.
    """
    remote, folder = published_weights(encoder), downloads.weights_folder()
    return downloads.fetch(remote, folder, read_encoder, progress)


def require_reachable(encoder: str) -> None:
    """Ask the server for the published weights without loading them, unless they are on this machine.

    Raises:
        DownloadError: as `fetch`.
    """
    remote, folder = published_weights(encoder), downloads.weights_folder()
    if downloads.find_kept(remote, folder) is None:
        downloads.require_reachable(remote, folder)


def read_encoder(path: str | Path) -> EncoderWeights:
    """Read the MiT encoder in a file of tensors, whichever it is; nothing in it is executed.

    Understood are mmsegmentation's names and SegFormer's, alone or as the `backbone` of a segmentor. Every parameter
    of the encoder must be there, of the right shape, and nothing else but the layers of a classifier or decoder.

    Raises:
        CheckpointError: the file cannot be read, holds no MiT encoder, or an incomplete or unknown one.
    """
    path = Path(path)
    return _found(read_tensors(path, "a file of weights"), path)


def encoder_of(content: Any, path: Path, encoder: str) -> EncoderWeights:
    """The MiT `encoder` in what `read_tensors` has read.

    Args:
        content: of the file.
        path: the file, for messages.
        encoder: which of them it has to be.

    Raises:
        CheckpointError: as `read_encoder`, or it is another one.
    """
    weights = _found(content, path)
    if weights.encoder != encoder:
        raise CheckpointError(
            f"The encoder in {path} is {weights.encoder}, and model.encoder is {encoder}. Make both the same."
        )
    return weights


def _found(content: Any, path: Path) -> EncoderWeights:
    try:
        state, left_out = _encoder_part(contained_weights(content))
        if _FIRST_IN_SEGFORMER in state:
            state = _converted(state)
        elif _FIRST_IN_MMSEGMENTATION not in state:
            raise CheckpointError(
                f"it holds no MiT encoder: neither '{_FIRST_IN_SEGFORMER}' (SegFormer) nor "
                f"'{_FIRST_IN_MMSEGMENTATION}' (mmsegmentation) is in it."
            )
        encoder = _named(state)
        shapes = _unallocated(encoder, MIT_SHAPES[encoder])
        try:
            return EncoderWeights(encoder, fitting(state, shapes), left_out)
        except CheckpointError as error:
            raise CheckpointError(f"it is no complete {encoder}: {error}.") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no encoder to start from: {error}") from error


def load_encoder(module: nn.Module, weights: EncoderWeights) -> None:
    """Put the weights into an encoder of the catalogue, all of it.

    Raises:
        CheckpointError: it is another encoder.
    """
    try:
        module.load_state_dict(weights.state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"The weights are of {weights.encoder} and fit no other encoder.") from error


def _encoder_part(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The encoder, its names without a prefix, and the names of the layers that follow it."""
    is_segmentor = any(name.startswith("backbone.") for name in state)
    heads = _HEADS if is_segmentor else _HEADS[:1]
    left_out = tuple(name for name in state if name.startswith(heads))
    encoder = {name: value for name, value in state.items() if name not in left_out}
    if is_segmentor:
        if not all(name.startswith("backbone.") for name in encoder):
            raise CheckpointError("it holds more than an encoder and a decoder.")
        encoder = {name.removeprefix("backbone."): value for name, value in encoder.items()}
    return encoder, left_out


def _converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        return convert_encoder_state_dict(state)
    except Exception as error:
        # Names and shapes can be wrong in any way.
        raise CheckpointError(
            "it is no complete MiT encoder of SegFormer: a weight is missing, of another shape, or of no MiT."
        ) from error


def _named(state: Mapping[str, Tensor]) -> str:
    try:
        return find_encoder(state)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


@cache
def _unallocated(encoder: str, shape: tuple[int, tuple[int, ...]]) -> dict[str, Tensor]:
    """The parameters by name, with their shapes; `shape` is the catalogue's for `encoder`."""
    # Draws no random numbers: those of a run must not depend on the file that it starts from.
    with outline():
        return dict(HRDAMixVisionTransformer(encoder).state_dict())
