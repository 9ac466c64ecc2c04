"""One training iteration: supervised source, and a second pass on mixed target (or its control).

Mean teacher, pseudo-labels and cross-domain mixing follow DACS (Tranheden et al., WACV 2021) as in
DAFormer (Hoyer et al., CVPR 2022, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.hrda.feature_distance import feature_distance
from common.hrda.mixing import ColorJitter, blur, class_masks, draw_classes, draw_sigma, paste
from common.hrda.predictor import denormalise, normalise
from common.hrda.pseudo_labels import PseudoLabels, Share, alone, pseudo_labels
from common.hrda.segmentor import HRDASegmentor, draw_detail_box
from common.hrda.settings import MODES, SelfTrainingSettings, closest
from common.hrda.teacher import copy_buffers, update_teacher
from common.hrda.windows import Box


@dataclass(frozen=True)
class StepDraws:
    """The random choices of one iteration."""

    source_box: Box
    """High-resolution sub-crop of the source pass."""
    second_box: Box
    """The same of the second pass."""
    mask: Tensor
    """B×H×W bool: pixels that come from the source in the mixed batch."""
    jitter: ColorJitter | None
    """Colour jitter of the second pass, or None where the coin said no."""
    sigma: float | None
    """Blur of the second pass in pixels, or None."""

    @classmethod
    def draw(cls, labels: Tensor, settings: SelfTrainingSettings, generator: torch.Generator) -> StepDraws:
        """Draw for source labels B×H×W. Always the same number of draws, so that runs stay comparable."""
        size = (labels.shape[-2], labels.shape[-1])
        boxes = draw_detail_box(size, generator), draw_detail_box(size, generator)
        mask = class_masks(labels, draw_classes(labels, generator))
        coins = torch.rand(2, generator=generator)
        jitter = ColorJitter.draw(len(labels), settings.jitter_strength, generator)
        sigma = draw_sigma(generator)
        return cls(
            *boxes,
            mask,
            jitter if coins[0] < settings.jitter_probability else None,
            sigma if coins[1] < settings.blur_probability else None,
        )


@dataclass(frozen=True)
class StepResult:
    """What one iteration leaves for logs and previews; its gradients are in the student."""

    scalars: dict[str, Tensor]
    """0-dim tensors on the model's device, detached: reading them is left to who logs."""
    second_images: Tensor | None
    """B×3×H×W normalised images of the second pass, augmented; None in source-only mode."""
    second_labels: Tensor | None
    """B×H×W int64 labels of the second pass."""
    pseudo: PseudoLabels | None
    """The teacher's answer to the target batch, when it was asked."""


class SelfTraining:
    """Runs training iterations on a student and its teacher.

    Modes: 'source-only' and 'supervised' make one supervised pass; 'control' adds a second pass on the
    same source batch, strongly augmented; 'uda' replaces that second pass by target images mixed with
    source, once `adapt` is set. What 'uda' gains over 'control' is due to the target.

    Args:
        student: receives the gradients.
        teacher: made by `make_teacher` from the student; followed up at the start of every iteration.
        settings: of the method.
        mode: one of the four above.
        generator: source of all randomness but the student's dropout and drop-path (CPU).
        class_weights: C float, loss weight of each class in both passes, or None.
        imagenet_encoder: frozen encoder for the feature distance; needed when its weight is above 0.
        autocast: makes the context in which networks and losses are computed.
        backward: adds the gradients of a loss; it may scale the loss before.
        share: averages a tensor over the processes that train together.

    Raises:
        ValueError: unknown mode, or a feature distance without `imagenet_encoder`.
    """

    def __init__(
        self,
        student: HRDASegmentor,
        teacher: HRDASegmentor,
        settings: SelfTrainingSettings,
        *,
        mode: str = "uda",
        generator: torch.Generator,
        class_weights: Tensor | None = None,
        imagenet_encoder: nn.Module | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        backward: Callable[[Tensor], None] = Tensor.backward,
        share: Share = alone,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Unknown mode '{mode}': {closest(mode, MODES)}")
        if settings.feature_distance_weight > 0 and imagenet_encoder is None:
            raise ValueError(
                "feature_distance_weight is above 0, so an encoder with ImageNet weights is needed to compare with. "
                "Give pretrained encoder weights, or set feature_distance_weight to 0."
            )
        self.student = student
        self.teacher = teacher
        self.settings = settings
        self.mode = mode
        self.generator = generator
        self.class_weights = class_weights
        self.imagenet_encoder = imagenet_encoder
        self.autocast = autocast
        self.backward = backward
        self.share = share

    def step(
        self,
        source_images: Tensor,
        source_labels: Tensor,
        target_images: Tensor | None = None,
        *,
        iteration: int,
        target_valid: Tensor | None = None,
        adapt: bool = True,
        draws: StepDraws | None = None,
    ) -> StepResult:
        """Follow up the teacher and add this iteration's gradients to the student.

        The caller zeroes the gradients before and steps the optimiser after.

        Args:
            source_images: B×3×H×W float32, normalised.
            source_labels: B×H×W int64, 255 = ignored.
            target_images: B×3×H×W float32, normalised; needed when adapting.
            iteration: 0 in the first call.
            target_valid: B×H×W, 0 where a pseudo-label must not count (padding, margins).
            adapt: in mode 'uda', whether self-training has started; before, the second pass is the control's.
            draws: the random choices; drawn when left out.
        """
        adapting = self.mode == "uda" and adapt
        update_teacher(self.teacher, self.student, iteration, self.settings.alpha)
        if not adapting:
            copy_buffers(self.teacher, self.student)
        draws = draws or StepDraws.draw(source_labels, self.settings, self.generator)

        scalars = self._source_pass(source_images, source_labels, draws.source_box)
        if self.mode in ("source-only", "supervised"):
            return StepResult(scalars, None, None, None)

        pseudo = None
        images, labels, weights = source_images, source_labels, None
        if adapting:
            pseudo = self._ask_teacher(target_images, target_valid)
            images = paste(draws.mask, source_images, target_images)
            labels = paste(draws.mask, source_labels, pseudo.labels)
            weights = paste(draws.mask, torch.ones_like(pseudo.weights), pseudo.weights)
            scalars["pseudo_label/confident_share"] = pseudo.confident_share
            scalars["pseudo_label/foreground_share"] = self.share((pseudo.labels > 0).float().mean())
        images = self._augment(images, draws)
        with self.autocast():
            logits = self.student.train_logits(images, draws.second_box)
            losses = self.student.losses(logits, labels, weights, self.class_weights)
            second_loss = sum(losses.values())
        self.backward(second_loss)
        scalars["loss/mixed" if adapting else "loss/augmented"] = second_loss.detach()
        return StepResult(scalars, images, labels, pseudo)

    def _source_pass(self, images: Tensor, labels: Tensor, box: Box) -> dict[str, Tensor]:
        with self.autocast():
            logits = self.student.train_logits(images, box)
            losses = self.student.losses(logits, labels, class_weights=self.class_weights)
            loss = sum(losses.values())
            scalars = {"loss/source": loss.detach(), "loss/source_detail": losses["loss_detail"].detach()}
            if self.settings.feature_distance_weight > 0:
                distance = self._feature_distance(images, labels, logits.context_features[-1])
                scalars["loss/feature_distance"] = distance.detach()
                loss = loss + distance
        self.backward(loss)
        return scalars

    def _feature_distance(self, images: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        settings = self.settings
        with torch.no_grad():
            reference = self.imagenet_encoder(self.student.context_images(images))[-1]
        distance = feature_distance(
            features,
            reference,
            labels,
            settings.feature_distance_classes,
            settings.feature_distance_min_share,
            self.student.num_classes,
        )
        return settings.feature_distance_weight * distance

    @torch.no_grad()
    def _ask_teacher(self, images: Tensor, valid: Tensor | None) -> PseudoLabels:
        with self.autocast():
            logits = self.teacher.crop_logits(images)
        pseudo = pseudo_labels(logits.float(), self.settings, self.share)
        if valid is None:
            return pseudo
        weights = pseudo.weights * valid
        return PseudoLabels(pseudo.labels, pseudo.confidence, weights, pseudo.confident_share)

    def _augment(self, images: Tensor, draws: StepDraws) -> Tensor:
        if draws.jitter is not None:
            images = normalise(draws.jitter(denormalise(images) / 255) * 255)
        if draws.sigma is not None:
            images = blur(images, draws.sigma)
        return images
