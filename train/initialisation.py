"""Weights to start from."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.hrda import HRDASegmentor, SettingsError, load_checkpoint
from common.hrda.checkpoints import CheckpointError
from common.hrda.reference_weights import convert_encoder_state_dict


def load_initial_weights(student: HRDASegmentor, path: Path) -> str:
    """Put the weights of a file into `student`: all of it where the decoder fits, else its encoder's.

    Args:
        student: receives the weights.
        path: a checkpoint of HRDA, or weights of a MiT encoder under SegFormer's names.

    Returns:
        A sentence that says what was loaded.

    Raises:
        SettingsError: the file cannot be read or holds another encoder.
    """
    encoder = _encoder_weights(path)
    if encoder is not None:
        _load_encoder(student, encoder, path)
        return f"Encoder weights loaded from {path}; the decoder starts from random weights."
    try:
        state = load_checkpoint(path).model.state_dict()
    except CheckpointError as error:
        raise SettingsError(str(error)) from error
    wanted = student.state_dict()
    if state.keys() == wanted.keys() and all(state[name].shape == wanted[name].shape for name in wanted):
        student.load_state_dict(state)
        return f"All weights loaded from {path}."
    _load_encoder(
        student, {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}, path
    )
    return (
        f"Encoder weights loaded from {path}; its decoder has other classes or channels and starts from random weights."
    )


def _load_encoder(student: HRDASegmentor, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        student.backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise SettingsError(
            f"The encoder in {path} is not the one of the settings. Set model.encoder to the one it was trained with."
        ) from error


def _encoder_weights(path: Path) -> dict[str, Tensor] | None:
    """The encoder in a file of nothing but a MiT, under our names; None if the file holds more."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise SettingsError(f"{path} is not a file of weights, or it is damaged.") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    if "patch_embed1.proj.weight" not in state:
        return None
    # SegFormer's published files also hold the layer that told ImageNet's classes apart.
    try:
        return convert_encoder_state_dict({n: v for n, v in state.items() if not n.startswith("head.")})
    except KeyError as error:
        raise SettingsError(f"{path} is no complete MiT encoder: {error.args[0]}") from error
