"""Weights of the reference implementation and of the former app: their names → ours, strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from common.hrda.catalogue import MIT_SHAPES
from common.hrda.settings import ModelSettings

REFERENCE_PREFIXES = ("model.", "ema_model.", "imnet_model.")


def infer_model_settings(state: Mapping[str, Tensor]) -> ModelSettings:
    """The model settings that weights of our names were made with, but for the crop, of which they know nothing.

    Raises:
        ValueError: the encoder's shape is none of the catalogue's.
    """
    encoder = find_encoder({_strip(name, "backbone."): v for name, v in state.items() if name.startswith("backbone.")})
    num_classes, decoder_channels = state["decode_head.head.conv_seg.weight"].shape[:2]
    attention_classes, attention_channels = state["decode_head.scale_attention.conv_seg.weight"].shape[:2]
    return ModelSettings(
        encoder=encoder,
        num_classes=num_classes,
        decoder_channels=decoder_channels,
        attention_channels=attention_channels,
        attention_classwise=attention_classes == num_classes,
    )


_OUR_BLOCK = re.compile(r"layers\.([0-3])\.1\.(\d{1,3})\.")


def find_encoder(state: Mapping[str, Tensor]) -> str:
    """Name in the catalogue of the encoder with these parameters, which have our names.

    Raises:
        ValueError: width and depths are none of the catalogue's.
    """
    depths = [0, 0, 0, 0]
    for match in filter(None, map(_OUR_BLOCK.match, state)):
        stage, block = int(match[1]), int(match[2])
        depths[stage] = max(depths[stage], block + 1)
    first_norm = state.get("layers.0.2.weight")
    embed_dims = 0 if first_norm is None else first_norm.numel()
    for name, shape in MIT_SHAPES.items():
        if shape == (embed_dims, tuple(depths)):
            return name
    raise ValueError(f"its encoder has {embed_dims} channels and depths {depths}: none of {', '.join(MIT_SHAPES)}.")


def _strip(name: str, prefix: str) -> str:
    return name[len(prefix) :] if name.startswith(prefix) else name


_BLOCK_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attn.attn.out_proj",
    "attn.sr": "attn.sr",
    "attn.norm": "attn.norm",
    "mlp.fc1": "ffn.layers.0",
    "mlp.dwconv.dwconv": "ffn.layers.1",
    "mlp.fc2": "ffn.layers.4",
}
_PATCH_EMBED = re.compile(r"patch_embed([1-4])\.(proj|norm)\.(weight|bias)")
_STAGE_NORM = re.compile(r"norm([1-4])\.(weight|bias)")
_BLOCK = re.compile(r"block([1-4])\.(\d+)\.(.+)\.(weight|bias)")


def convert_encoder_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SegFormer's names of a MiT encoder → ours (mmsegmentation's), strictly.

    Raises:
        KeyError: a name that a MiT does not have, or a query without its key and value.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if match := _PATCH_EMBED.fullmatch(name):
            stage, part, kind = match.groups()
            part = "projection" if part == "proj" else part
            converted[f"layers.{int(stage) - 1}.0.{part}.{kind}"] = value
        elif match := _STAGE_NORM.fullmatch(name):
            converted[f"layers.{int(match[1]) - 1}.2.{match[2]}"] = value
        elif match := _BLOCK.fullmatch(name):
            stage, block, part, kind = match.groups()
            ours = f"layers.{int(stage) - 1}.1.{block}."
            if part == "attn.q":
                key_value = state[name.replace("attn.q.", "attn.kv.")]
                converted[f"{ours}attn.attn.in_proj_{kind}"] = torch.cat([value, key_value])
            elif part == "attn.kv":
                if name.replace("attn.kv.", "attn.q.") not in state:
                    raise KeyError(f"'{name}' has no query beside it.")
            elif part in _BLOCK_NAMES:
                is_pointwise = part in ("mlp.fc1", "mlp.fc2") and kind == "weight"
                converted[f"{ours}{_BLOCK_NAMES[part]}.{kind}"] = value[:, :, None, None] if is_pointwise else value
            else:
                raise KeyError(f"'{name}' is no parameter of a MiT encoder.")
        else:
            raise KeyError(f"'{name}' is no parameter of a MiT encoder.")
    return converted


def parts(state: Mapping[str, Tensor]) -> set[str]:
    """Which prefixed parts (`model.`, `ema_model.`, `imnet_model.`) the weights of a self-training model have."""
    names = [_strip(name, "module.") for name in state]
    return {prefix for prefix in REFERENCE_PREFIXES if any(name.startswith(prefix) for name in names)}


def convert_reference_state_dict(state: Mapping[str, Tensor], prefix: str | None = None) -> dict[str, Tensor]:
    """Names of the reference implementation → ours, strictly: every name is mapped or refused.

    Args:
        state: a segmentor (`backbone.*`, `decode_head.*`) or a whole self-training model, whose parts are
            prefixed `model.`, `ema_model.` and `imnet_model.`; `module.` before any of it is dropped.
        prefix: which part of a self-training model to convert; None: the student, `model.`.

    Raises:
        KeyError: an unknown name, or no part of the given prefix.
    """
    state = {_strip(name, "module."): value for name, value in state.items()}
    unprefixed = [name for name in state if not name.startswith(REFERENCE_PREFIXES)]
    if unprefixed and len(unprefixed) != len(state):
        raise KeyError(f"'{unprefixed[0]}' belongs to none of {', '.join(REFERENCE_PREFIXES)}.")
    if not unprefixed:
        chosen = prefix or "model."
        state = {_strip(name, chosen): value for name, value in state.items() if name.startswith(chosen)}
    elif prefix is not None:
        raise KeyError(f"The weights have no part '{prefix}': their names carry no prefix.")
    if not state:
        raise KeyError(f"The weights have no part '{prefix or 'model.'}'.")
    encoder = {_strip(n, "backbone."): v for n, v in state.items() if n.startswith("backbone.")}
    head = {n: v for n, v in state.items() if n.startswith("decode_head.")}
    for name in state:
        if not name.startswith(("backbone.", "decode_head.")):
            raise KeyError(f"'{name}' is no part of a HRDA segmentor.")
    return {f"backbone.{n}": v for n, v in convert_encoder_state_dict(encoder).items()} | head
