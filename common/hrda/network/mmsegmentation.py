"""The network under mmsegmentation's roof: to be built from its configs and run by its tools.

Nothing else imports this module: mmsegmentation's zoo takes longer to import than torch. A config names it:
`custom_imports = dict(imports=["common.hrda.network.mmsegmentation"])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.hrda.network import mmcv_operators
from common.hrda.network.heads import DAFormerHead, HRDAHead
from common.hrda.network.mit import HRDAMixVisionTransformer
from common.hrda.network.segmentor import HRDASegmentor, draw_detail_box
from common.hrda.settings import InferenceSettings
from common.hrda.sliding import sliding_logits

mmcv_operators.ensure_importable()

from mmseg.models.decode_heads.decode_head import BaseDecodeHead  # noqa: E402
from mmseg.models.segmentors.base import BaseSegmentor  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

MODELS.register_module(module=HRDAMixVisionTransformer)
MODELS.register_module(module=HRDAHead)


@MODELS.register_module(name=DAFormerHead.__name__)
class RegisteredDAFormerHead(BaseDecodeHead):
    """`DAFormerHead` with mmsegmentation's losses, for its own segmentors.

    Args:
        in_channels, channels, num_classes, fusion, dropout_ratio: as in `DAFormerHead`.
        kwargs: as in mmsegmentation's `BaseDecodeHead`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        fusion: str = "sepaspp",
        dropout_ratio: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels=list(in_channels),
            channels=channels,
            num_classes=num_classes,
            out_channels=num_classes,
            in_index=list(range(len(in_channels))),
            input_transform="multiple_select",
            align_corners=False,
            init_cfg=None,
            **kwargs,
        )
        # The last layer is the head's own.
        del self.conv_seg
        self.head = DAFormerHead(in_channels, channels, num_classes, fusion, dropout_ratio)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits B×C×H/4×W/4 of features at strides 4, 8, 16 and 32."""
        return self.head(features)


@MODELS.register_module(name=HRDASegmentor.__name__)
class RegisteredHRDASegmentor(BaseSegmentor):
    """`HRDASegmentor` as an mmsegmentation segmentor.

    Args:
        backbone: config of the encoder.
        decode_head: config of the `HRDAHead`.
        crop_size, detail_loss_weight, class_weights: as in `HRDASegmentor`.
        data_preprocessor, train_cfg, test_cfg, init_cfg: as in mmsegmentation.
    """

    align_corners = False

    def __init__(
        self,
        backbone: dict[str, Any],
        decode_head: dict[str, Any],
        crop_size: tuple[int, int] = (512, 512),
        detail_loss_weight: float = 0.1,
        class_weights: list[float] | None = None,
        data_preprocessor: Any = None,
        train_cfg: Any = None,
        test_cfg: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        self.hrda = HRDASegmentor(
            MODELS.build(backbone), MODELS.build(decode_head), crop_size, detail_loss_weight, class_weights
        )

    @property
    def decode_head(self) -> HRDAHead:
        """Where mmsegmentation looks for the number of classes."""
        return self.hrda.decode_head

    def extract_feat(self, inputs: Tensor) -> list[Tensor]:
        """The encoder's features of `inputs` at its own resolution."""
        return self.hrda.backbone(inputs)

    def encode_decode(self, inputs: Tensor, batch_data_samples: Any = None) -> Tensor:
        """Logits B×C×H×W of one crop an image."""
        return self.hrda.crop_logits(inputs)

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        return self.hrda.crop_logits(inputs)

    def loss(self, inputs: Tensor, data_samples: Any) -> dict[str, Tensor]:
        """Losses of images with `gt_sem_seg` in their data samples."""
        labels = torch.stack([sample.gt_sem_seg.data.squeeze(0) for sample in data_samples]).long()
        box = draw_detail_box(tuple(inputs.shape[-2:]))
        return self.hrda.losses(self.hrda.train_logits(inputs, box), labels)

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """Sliding prediction of images of any size (see `common.hrda.sliding.sliding_logits`)."""
        return self.postprocess_result(sliding_logits(self.hrda, inputs, InferenceSettings()), data_samples)
