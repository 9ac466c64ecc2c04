"""Encoders of timm (Wightman, "PyTorch Image Models") as HRDA needs them: four maps at strides 4, 8, 16 and 32.

timm takes seconds to import: only `common.hrda.network.encoders` imports this module, and only when it is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.hrda.checks import SettingsError, received
from common.hrda.network import torchvision_operators
from common.hrda.network.drop_path import DropPath
from common.hrda.network.outline import outline
from common.hrda.pixels import IMAGENET_MEAN, IMAGENET_STD

torchvision_operators.ensure_importable()

import timm  # noqa: E402
from timm.layers import Conv2dSame  # noqa: E402
from timm.layers import DropPath as TimmDropPath  # noqa: E402
from timm.models import group_parameters  # noqa: E402

STRIDES = (4, 8, 16, 32)
_DRAWN = MappingProxyType({"pretrained": False})
_MIDDLE = 16
"""The stride at which a vision transformer is read, whatever the size of its patches."""


class TimmEncoder(nn.Module):
    """One of timm's image models as an encoder.

    A model with maps at all four strides gives these. A vision transformer has one map, of which a simple feature
    pyramid makes four (Li et al., ECCV 2022). Images come with ImageNet's normalisation; where the model's weights were
    made with another, the adapter normalises anew.

    Args:
        name: in timm, with or without the tag of its weights.
        drop_path_rate: highest stochastic-depth rate; models that know none do without.

    Raises:
        SettingsError: timm has no such model, or it cannot give four maps of images of any size.
    """

    def __init__(self, name: str, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.name = name
        self.network = features(name, drop_path_rate)
        channels, strides = self.network.feature_info.channels(), self.network.feature_info.reduction()
        self.pyramid: SimplePyramid | None = None
        self._places: tuple[int, ...] = ()
        self._patch = 0
        if set(STRIDES) <= set(strides):
            self._places = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES)
            self.channels = tuple(channels[place] for place in self._places)
        elif len(set(strides)) == 1 and strides[-1] <= 2 * _MIDDLE:
            self._patch = strides[-1]
            self.pyramid = SimplePyramid(channels[-1])
            self.channels = self.pyramid.channels
        else:
            raise SettingsError(
                f"The encoder timm:{name} has maps at strides {strides}. Expected 4, 8, 16 and 32, or one stride of a "
                "vision transformer. Choose another."
            )
        for parent in list(self.network.modules()):
            for place, child in parent.named_children():
                if isinstance(child, TimmDropPath):
                    setattr(parent, place, DropPath(child.drop_prob))
                elif type(child) is Conv2dSame:
                    # Same parameters, another forward: nothing needs to be copied.
                    child.__class__ = WholeCellsConv2d
        config = self.network.pretrained_cfg
        # ImageNet's normalisation undone and the model's own done, as one scale and shift of each channel.
        scale = [ours / 255 / std for ours, std in zip(IMAGENET_STD, config["std"], strict=True)]
        shift = [(ours / 255 - m) / s for ours, m, s in zip(IMAGENET_MEAN, config["mean"], config["std"], strict=True)]
        self._is_normalised = max(*(abs(s - 1) for s in scale), *map(abs, shift)) < 1e-3
        self.register_buffer("_scale", torch.tensor(scale)[:, None, None], persistent=False)
        self.register_buffer("_shift", torch.tensor(shift)[:, None, None], persistent=False)

    @property
    def activation_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass instead of keeping what they computed."""
        return self._checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, wanted: bool) -> None:
        self._checkpointing = wanted
        inner = getattr(self.network, "model", self.network)
        inner.set_grad_checkpointing(wanted)

    _checkpointing = False

    def init_weights(self) -> None:
        """Nothing: timm has drawn its weights while it built the model."""

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay leaves alone: of norms, biases, and those that timm names."""
        inner = getattr(self.network, "model", self.network)
        named = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
        return [
            p for name, p in self.named_parameters() if p.ndim <= 1 or any(name.endswith(f".{own}") for own in named)
        ]

    def learning_layers(self) -> list[list[nn.Parameter]]:
        """Parameters of the patches, of each block, and of the norm with the last one; none where timm states no order.
        Those of a pyramid, which no weights come for, are of no layer."""
        inner = getattr(self.network, "model", self.network)
        if not hasattr(inner, "group_matcher"):
            return []
        layers = group_parameters(inner, inner.group_matcher(coarse=False), return_values=True)
        return [layers[place] for place in sorted(layers)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of normalised images B×3×H×W at strides 4, 8, 16 and 32, ⌈H/stride⌉×⌈W/stride⌉ each."""
        height, width = x.shape[-2:]
        if not self._is_normalised:
            x = x * self._scale + self._shift
        # Hierarchical transformers take whole windows only: the border is filled up, and cut off their maps.
        whole = STRIDES[-1]
        x = F.pad(x, (0, _cells(width, whole) * whole - width, 0, _cells(height, whole) * whole - height))
        features = self._pyramid(x) if self.pyramid is not None else self._maps(x)
        return [
            feature[..., : _cells(height, stride), : _cells(width, stride)]
            for feature, stride in zip(features, STRIDES, strict=True)
        ]

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = self.network(x)
        chosen = [maps[place] for place in self._places]
        if getattr(self.network, "output_fmt", None) == "NHWC":
            chosen = [feature.permute(0, 3, 1, 2) for feature in chosen]
        return chosen

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        if self._patch != _MIDDLE:
            size = [side // _MIDDLE * self._patch for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return self.pyramid(self.network(x)[-1])


def _cells(side: int, stride: int) -> int:
    """⌈side/stride⌉, without negative numbers: division of integers rounds these towards zero in ONNX."""
    return (side + stride - 1) // stride


class WholeCellsConv2d(Conv2dSame):
    """Tensorflow's padding 'SAME' of maps whose sides are whole multiples of the stride, as they are here: it is then
    the same for all sizes. Computed from each size, as timm does, it takes torch's exporter minutes."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` B×C×H×W to B×C×H/stride×W/stride."""
        sizes = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        height, width = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in sizes)
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SimplePyramid(nn.Module):
    """Maps at strides 4, 8, 16 and 32 from one at stride 16: transposed convolutions up, pooling down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = (channels // 4, channels // 2, channels, channels)
        self.to_8 = nn.ConvTranspose2d(channels, channels // 2, 2, 2)
        self.to_4 = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 2, 2, 2),
            nn.GroupNorm(1, channels // 2),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 2, channels // 4, 2, 2),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The four maps of `x` B×C×h×w."""
        return [self.to_4(x), self.to_8(x), x, F.max_pool2d(x, 2)]


def known_to_timm(name: str) -> bool:
    """Whether timm can build a model of this name."""
    return timm.is_model(name.partition(".")[0])


def weights_config(name: str) -> Mapping[str, Any]:
    """What timm states of the published weights of a model: licence, where they are, normalisation."""
    config = timm.get_pretrained_cfg(name)
    return {} if config is None else config.to_dict()


def features(name: str, drop_path_rate: float, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """timm's model, its feature maps as its answer.

    Args:
        name: in timm.
        drop_path_rate: highest stochastic-depth rate; models that know none do without.
        state: weights of the whole model but its classifier; None: drawn.

    Raises:
        SettingsError: timm has no such model, or it cannot give feature maps.
    """
    if not known_to_timm(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names all."
        raise SettingsError(f"timm has no model of this name: {hint} Received: {received(name)}.")
    any_size: dict[str, Any] = {"strict_img_size": False}
    with outline():
        strides = _created(name, [any_size, {}]).feature_info.reduction()
    if len(set(strides)) == 1:
        any_size = {"out_indices": [-1], "dynamic_img_size": True}
    rate = {"drop_path_rate": drop_path_rate}
    return _created(name, [rate | any_size, any_size, rate, {}], _loading(state))


def require_complete(name: str, state: Mapping[str, Tensor]) -> None:
    """Make sure that `state` is all of timm's model but its classifier, as timm itself loads it strictly.

    Raises:
        Exception: of any kind: it is not.
    """
    timm.create_model(name, num_classes=0, **_loading(state))


def _loading(state: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """What `timm.create_model` is told so that it loads `state`, strictly: without classes it has no classifier."""
    if state is None:
        return {"pretrained": False}
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state), "num_classes": 0}}


def _created(name: str, wishes: Sequence[Mapping[str, Any]], loading: Mapping[str, Any] = _DRAWN) -> nn.Module:
    """The model with the first of `wishes` that it knows: timm hands them on to it, and it refuses those of others."""
    for wish in wishes:
        try:
            return timm.create_model(name, features_only=True, **loading, **wish)
        except TypeError as error:
            unknown = error
        except (RuntimeError, ValueError, AssertionError, KeyError, AttributeError) as error:
            unknown = error
            break
    raise SettingsError(f"timm:{name} cannot give feature maps, which an encoder must. Choose another.") from unknown
