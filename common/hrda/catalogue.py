"""Every encoder that a network can be built on: its shape, and where its weights come from and under which licence.

Knows no torch, so that the command line can name encoders at once. `train/models.json` follows from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ANY_OF_TIMM = "timm:"
"""Begins the name of an encoder that the catalogue does not list: `timm:<name in timm>`."""
_NAME_IN_TIMM = re.compile(rf"{ANY_OF_TIMM}[a-z0-9][a-z0-9_]{{0,79}}(\.[a-z0-9_]{{1,80}})?")

_SEGFORMER_LICENCE = "NVIDIA Source Code License for SegFormer: non-commercial use only"
_APACHE = "apache-2.0 (as timm states it)"


@dataclass(frozen=True)
class EncoderSpec:
    """One entry of the catalogue."""

    title: str
    """Name for a person: the line of encoders, a hyphen, and which of the line it is."""
    parameters: int
    """Number of the encoder's parameters: what encoders are ordered by, from small and fast to large and accurate."""
    channels: tuple[int, int, int, int]
    """Channels of the four feature maps, at strides 4, 8, 16 and 32."""
    weights_source: str
    """The published weights. Of the family mit: the file's name, as mmsegmentation has it; the digits at its end begin
    its SHA-256. Of the family timm: the model's name in timm, which knows where they are."""
    weights_licence: str
    """Licence of the published weights (not of this code)."""
    family: Literal["mit", "timm"] = "timm"
    """Networks of one family are built by the same module of `common.hrda.network`."""

    @property
    def weights_publisher(self) -> str:
        """Whose list has `weights_source`."""
        return "mmsegmentation" if self.family == "mit" else "timm"


MIT_SHAPES: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    "mit_b0": (32, (2, 2, 2, 2)),
    "mit_b1": (64, (2, 2, 2, 2)),
    "mit_b2": (64, (3, 4, 6, 3)),
    "mit_b3": (64, (3, 4, 18, 3)),
    "mit_b4": (64, (3, 8, 27, 3)),
    "mit_b5": (64, (3, 6, 40, 3)),
}
"""Of each MiT: channels of its first stage, and the transformer blocks of its four stages."""
MIT_WIDENING = (1, 2, 5, 8)
"""Channels of MiT's stages as multiples of the first one's."""


def _mit(name: str, parameters: int, weights_file: str) -> EncoderSpec:
    channels = tuple(MIT_SHAPES[name][0] * times for times in MIT_WIDENING)
    title = f"MiT-{name.removeprefix('mit_')} (SegFormer)"
    return EncoderSpec(title, parameters, channels, weights_file, _SEGFORMER_LICENCE, "mit")


ENCODERS: dict[str, EncoderSpec] = {
    "pvt_v2_b0": EncoderSpec("PVTv2-b0", 3_409_760, (32, 64, 160, 256), "pvt_v2_b0.in1k", _APACHE),
    "pvt_v2_b2": EncoderSpec("PVTv2-b2", 24_849_856, (64, 128, 320, 512), "pvt_v2_b2.in1k", _APACHE),
    "pvt_v2_b5": EncoderSpec("PVTv2-b5", 81_443_008, (64, 128, 320, 512), "pvt_v2_b5.in1k", _APACHE),
    "convnext_tiny": EncoderSpec(
        "ConvNeXt-tiny", 27_818_592, (96, 192, 384, 768), "convnext_tiny.in12k_ft_in1k", _APACHE
    ),
    "convnext_small": EncoderSpec(
        "ConvNeXt-small", 49_453_152, (96, 192, 384, 768), "convnext_small.in12k_ft_in1k", _APACHE
    ),
    "sam2_hiera_tiny": EncoderSpec(
        "SAM2-Hiera-tiny", 26_849_472, (96, 192, 384, 768), "sam2_hiera_tiny.fb_r896", _APACHE
    ),
    "sam2_hiera_small": EncoderSpec(
        "SAM2-Hiera-small", 33_947_328, (96, 192, 384, 768), "sam2_hiera_small.fb_r896", _APACHE
    ),
    "sam2_hiera_base_plus": EncoderSpec(
        "SAM2-Hiera-base+", 68_675_712, (112, 224, 448, 896), "sam2_hiera_base_plus.fb_r896", _APACHE
    ),
    "caformer_s18": EncoderSpec("CAFormer-s18", 23_236_912, (64, 128, 320, 512), "caformer_s18.sail_in1k", _APACHE),
    "efficientnet_lite0": EncoderSpec(
        "EfficientNet-Lite0", 2_958_848, (24, 40, 112, 320), "tf_efficientnet_lite0.in1k", _APACHE
    ),
    "mobilenetv4_small": EncoderSpec(
        "MobileNetV4-small", 1_261_664, (32, 64, 96, 960), "mobilenetv4_conv_small.e2400_r224_in1k", _APACHE
    ),
    "dinov2_small": EncoderSpec(
        "DINOv2-S with registers", 22_720_992, (96, 192, 384, 384), "vit_small_patch14_reg4_dinov2.lvd142m", _APACHE
    ),
    "dinov2_base": EncoderSpec(
        "DINOv2-B with registers", 89_236_416, (192, 384, 768, 768), "vit_base_patch14_reg4_dinov2.lvd142m", _APACHE
    ),
    "mit_b0": _mit("mit_b0", 3_319_392, "mit_b0_20220624-7e0fe6dd.pth"),
    "mit_b1": _mit("mit_b1", 13_151_424, "mit_b1_20220624-02e5a6a1.pth"),
    "mit_b2": _mit("mit_b2", 24_196_288, "mit_b2_20220624-66e8bf70.pth"),
    "mit_b3": _mit("mit_b3", 44_072_128, "mit_b3_20220624-13b1141c.pth"),
    "mit_b4": _mit("mit_b4", 60_842_688, "mit_b4_20220624-d588d980.pth"),
    "mit_b5": _mit("mit_b5", 81_443_008, "mit_b5_20220624-658746d9.pth"),
}
"""Those come first whose weights are not marked non-commercial."""

DEFAULT = "pvt_v2_b2"
"""What is trained unless another is chosen: a transformer with overlapping patches as the published MiT, so that the
method's learning rates fit; 25 million parameters, which a card of 8 GB trains at the default crop and batch."""
DEFAULT_ON_CPU = "pvt_v2_b0"
"""What the page chooses on a machine without a graphics card: the smallest of the same line."""

FORMER_APP_WEIGHTS = f"ImageNet weights of SegFormer ({_SEGFORMER_LICENCE})"
"""What the former app started from."""


def is_encoder(name: str) -> bool:
    """Whether `name` is of the catalogue, or `timm:` and what may be a name in timm."""
    return name in ENCODERS or _NAME_IN_TIMM.fullmatch(name) is not None


def is_non_commercial(licence: str) -> bool:
    """Whether the name of a licence says that what is under it must not be used commercially."""
    return re.search(r"non-?commercial|\bnc\b", licence, re.IGNORECASE) is not None


def is_of_timm(name: str) -> bool:
    """Whether timm builds this encoder."""
    return name not in ENCODERS or ENCODERS[name].family == "timm"


def smaller_encoders(encoder: str) -> tuple[str, ...]:
    """Names of the encoders of the same line with fewer parameters, the largest first; none if it is not listed.

    Another line has other weights, with a licence of their own, and is more than a smaller choice.
    """
    if encoder not in ENCODERS:
        return ()
    chosen = ENCODERS[encoder]
    line = chosen.title.rpartition("-")[0]
    smaller = (
        name
        for name, spec in ENCODERS.items()
        if spec.title.rpartition("-")[0] == line and spec.parameters < chosen.parameters
    )
    return tuple(sorted(smaller, key=lambda name: ENCODERS[name].parameters, reverse=True))
