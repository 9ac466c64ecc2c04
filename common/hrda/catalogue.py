"""Every encoder that a network can be built on: its shape, and where its weights come from and under which licence.

Knows no torch, so that the command line can name encoders at once. `train/models.json` follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderSpec:
    """One entry of the catalogue."""

    title: str
    """Name for a person."""
    parameters: int
    """Number of the encoder's parameters: what encoders are ordered by, from small and fast to large and accurate."""
    embed_dims: int
    """Channels of the first stage; the others have 2, 5 and 8 times as many."""
    depths: tuple[int, int, int, int]
    """Transformer blocks of the four stages."""
    weights_file: str
    """Name of the published ImageNet weights, as mmsegmentation has them. The digits at its end begin their SHA-256."""
    family: str = "mit"
    """Networks of one family are built by the same code: `common.hrda.network.mit`."""
    weights_licence: str = "NVIDIA Source Code License for SegFormer: non-commercial use only"
    """Licence of the published ImageNet weights (not of this code)."""

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four feature maps, at strides 4, 8, 16 and 32."""
        return (self.embed_dims, self.embed_dims * 2, self.embed_dims * 5, self.embed_dims * 8)


ENCODERS: dict[str, EncoderSpec] = {
    "mit_b0": EncoderSpec("MiT-b0 (SegFormer)", 3_319_392, 32, (2, 2, 2, 2), "mit_b0_20220624-7e0fe6dd.pth"),
    "mit_b1": EncoderSpec("MiT-b1 (SegFormer)", 13_151_424, 64, (2, 2, 2, 2), "mit_b1_20220624-02e5a6a1.pth"),
    "mit_b2": EncoderSpec("MiT-b2 (SegFormer)", 24_196_288, 64, (3, 4, 6, 3), "mit_b2_20220624-66e8bf70.pth"),
    "mit_b3": EncoderSpec("MiT-b3 (SegFormer)", 44_072_128, 64, (3, 4, 18, 3), "mit_b3_20220624-13b1141c.pth"),
    "mit_b4": EncoderSpec("MiT-b4 (SegFormer)", 60_842_688, 64, (3, 8, 27, 3), "mit_b4_20220624-d588d980.pth"),
    "mit_b5": EncoderSpec("MiT-b5 (SegFormer)", 81_443_008, 64, (3, 6, 40, 3), "mit_b5_20220624-658746d9.pth"),
}


def smaller_encoders(encoder: str) -> tuple[str, ...]:
    """Names of the encoders with fewer parameters than `encoder`, the largest first."""
    most = ENCODERS[encoder].parameters
    smaller = (name for name, spec in ENCODERS.items() if spec.parameters < most)
    return tuple(sorted(smaller, key=lambda name: ENCODERS[name].parameters, reverse=True))
