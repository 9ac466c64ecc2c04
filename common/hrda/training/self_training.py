"""One training iteration: a pass on the source, one on mixed target and one on masked target, or their controls.

Mean teacher, pseudo-labels and cross-domain mixing follow DACS (Tranheden et al., WACV 2021) as in
DAFormer (Hoyer et al., CVPR 2022, section 3.1); the masked pass follows MIC (Hoyer et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.hrda.checks import closest
from common.hrda.network.segmentor import HRDASegmentor, TrainLogits, draw_detail_box
from common.hrda.pixels import denormalise, normalise
from common.hrda.settings import MODES, SelfTrainingSettings, ThinSettings
from common.hrda.training.feature_distance import MIN_SHARE, class_indices, feature_distance
from common.hrda.training.masking import block_side, draw_kept_blocks, mask_blocks
from common.hrda.training.mixing import ColorJitter, blur, class_masks, draw_classes, draw_sigma, paste, present_classes
from common.hrda.training.pseudo_labels import ClassCuts, PseudoLabels, averaged_views, pseudo_labels
from common.hrda.training.ranks import ALONE, Ranks
from common.hrda.training.teacher import copy_buffers, ramped_alpha, update_teacher
from common.hrda.training.thin import Answer, labelled_answer, mixed_answer, pseudo_answer, skeleton_loss
from common.hrda.windows import Box

Strong = tuple[ColorJitter | None, float | None]
"""Colour jitter, and σ of the blur in pixels; each None where it is switched off for this step."""


def _draw_strong(batch: int, settings: SelfTrainingSettings, generator: torch.Generator, ranks: Ranks) -> Strong:
    """Draw for `batch` images of each process.

    Augmentations that are switched off for this step still consume random numbers, so that runs stay comparable.
    """
    coins = torch.rand(2, generator=generator)
    jitter = ColorJitter.draw(ranks.count * batch, settings.jitter_strength, generator).part(ranks)
    sigma = draw_sigma(generator)
    return (
        jitter if coins[0] < settings.jitter_probability else None,
        sigma if coins[1] < settings.blur_probability else None,
    )


def _augment(images: Tensor, strong: Strong) -> Tensor:
    """Augment normalised images B×3×H×W."""
    jitter, sigma = strong
    if jitter is not None:
        images = normalise(jitter(denormalise(images) / 255) * 255)
    return images if sigma is None else blur(images, sigma)


@dataclass(frozen=True)
class MaskedDraws:
    """The random choices of the masked pass."""

    box: Box
    """High-resolution sub-crop."""
    kept: Tensor
    """B×rows×columns bool: blocks that are not masked."""
    side: int
    """Of a block, in pixels."""
    strong: Strong

    @classmethod
    def draw(cls, labels: Tensor, settings: SelfTrainingSettings, generator: torch.Generator, ranks: Ranks) -> Self:
        """Draw for labels B×H×W."""
        batch, *size = labels.shape
        box, side = draw_detail_box(size, generator), block_side(size, settings.mask_block_size)
        kept = ranks.part(draw_kept_blocks(ranks.count * batch, size, side, settings.mask_ratio, generator))
        return cls(box, kept, side, _draw_strong(batch, settings, generator, ranks))


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
    masked: MaskedDraws | None = None
    """Of the masked pass, where there is one."""

    @classmethod
    def draw(
        cls,
        labels: Tensor,
        settings: SelfTrainingSettings,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
        *,
        present: Tensor | None = None,
    ) -> StepDraws:
        """Draw for source labels. Always the same number of draws, so that runs stay comparable.

        Args:
            labels: B×H×W.
            settings: of the method.
            generator: source of randomness (CPU).
            ranks: processes that train together all draw for the whole batch.
            present: of `present_classes`; where it is left out, this waits for the device that the labels are on.
        """
        size = (labels.shape[-2], labels.shape[-1])
        boxes = draw_detail_box(size, generator), draw_detail_box(size, generator)
        present = present_classes(labels) if present is None else present
        mask = class_masks(labels, draw_classes(present, generator, ranks))
        if settings.mixing == "none":
            mask = torch.zeros_like(mask)
        strong = _draw_strong(len(labels), settings, generator, ranks)
        # Last, so that a run with masking draws for its other passes what a run without it draws.
        masked = MaskedDraws.draw(labels, settings, generator, ranks) if settings.masked_weight > 0 else None
        return cls(*boxes, mask, *strong, masked)


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
    source, once `adapt` is set. Masked image consistency adds a third pass to both: 'uda' masks target images,
    'control' source images. What 'uda' gains over 'control' is due to the target.

    Args:
        student: receives the gradients.
        teacher: made by `make_teacher` from the student; followed up at the start of every iteration.
        settings: of the method.
        mode: one of the four above.
        thin: losses for classes that are a few pixels wide.
        generator: source of all randomness but the student's dropout and drop-path (CPU).
        class_weights: C float, loss weight of each class in all passes, or None.
        class_names: names by index, among which the feature distance finds its classes.
        source_shares: C, share of each class in the source's pixels; needed by the rule 'class_balanced'.
        imagenet_encoder: frozen encoder for the feature distance; needed when its weight is above 0.
        autocast: makes the context in which networks and losses are computed.
        backward: adds the gradients of a loss; it may scale the loss before.
        accumulate: parts of the batch that go through the networks one after the other.
        ranks: the processes that train together; each steps on its part of the batch.

    Raises:
        ValueError: unknown mode, a feature distance without `imagenet_encoder`, or no `source_shares` where needed.
        SettingsError: the feature distance counts a class that is not among `class_names`.
    """

    def __init__(
        self,
        student: HRDASegmentor,
        teacher: HRDASegmentor,
        settings: SelfTrainingSettings,
        *,
        mode: str = "uda",
        thin: ThinSettings | None = None,
        generator: torch.Generator,
        class_weights: Tensor | None = None,
        class_names: Sequence[str] = (),
        source_shares: Tensor | None = None,
        imagenet_encoder: nn.Module | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        backward: Callable[[Tensor], None] = Tensor.backward,
        accumulate: int = 1,
        ranks: Ranks = ALONE,
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
        self.thin = thin or ThinSettings()
        self.generator = generator
        self.class_weights = class_weights
        self.imagenet_encoder = imagenet_encoder
        self.autocast = autocast
        self.backward = backward
        self.accumulate = accumulate
        self.ranks = ranks
        self._distance_classes: tuple[int, ...] = ()
        if settings.feature_distance_weight > 0:
            self._distance_classes = class_indices(settings.feature_distance_classes, class_names)
        self._cuts = None
        if mode == "uda" and settings.pseudo_label_rule == "class_balanced":
            if source_shares is None:
                raise ValueError(
                    "The rule 'class_balanced' needs the share of each class in the source: source_shares."
                )
            self._cuts = ClassCuts(source_shares, settings, class_weights, ranks.mean)

    def cuts(self) -> Tensor | None:
        """Probability C from which each class is believed at present; None where the rule finds none."""
        return None if self._cuts is None else self._cuts.cuts()

    def state_dict(self) -> dict[str, Tensor]:
        """What an iteration learns besides the student and the teacher; it shares the tensors."""
        return {} if self._cuts is None else dict(self._cuts.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave. Where the rule was another one, there is nothing to go on from."""
        if self._cuts is not None and state:
            self._cuts.load_state_dict(state)

    def step(
        self,
        source_images: Tensor,
        source_labels: Tensor,
        target_images: Tensor | None = None,
        *,
        iteration: int,
        target_valid: Tensor | None = None,
        source_tubes: Tensor | None = None,
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
            source_tubes: B×H×W bool, pixels of the labels near their middle lines; needed by skeleton recall.
            adapt: in mode 'uda', whether self-training has started; before, the second pass is the control's.
            draws: the random choices; drawn when left out.
        """
        adapting = self.mode == "uda" and adapt
        update_teacher(self.teacher, self.student, iteration, ramped_alpha(iteration, self.settings))
        if not adapting:
            copy_buffers(self.teacher, self.student)
        draws = draws or StepDraws.draw(source_labels, self.settings, self.generator, self.ranks)

        source = labelled_answer(source_labels, source_tubes, self.thin)
        scalars = self._source_pass(source_images, source, draws.source_box)
        if self.mode in ("source-only", "supervised"):
            return StepResult(scalars, None, None, None)

        pseudo, images, plain, second, masked_answer = None, source_images, source_images, source, source
        if adapting:
            pseudo = self._ask_teacher(target_images, target_valid)
            scalars |= self._statistics(pseudo)
            plain, masked_answer = target_images, pseudo_answer(pseudo, self.student.num_classes, self.thin)
            images = paste(draws.mask, source_images, target_images)
            second = mixed_answer(draws.mask, source, masked_answer)
        images = _augment(images, (draws.jitter, draws.sigma))
        scalars["loss/mixed" if adapting else "loss/augmented"] = self._pass(images, draws.second_box, second)
        if draws.masked is not None:
            masked = mask_blocks(_augment(plain, draws.masked.strong), draws.masked.kept, draws.masked.side)
            scalars["loss/masked"] = self._pass(masked, draws.masked.box, masked_answer, self.settings.masked_weight)
        return StepResult(scalars, images, second.labels, pseudo)

    def _pass(self, images: Tensor, box: Box, answer: Answer, weight: float = 1.0) -> Tensor:
        """Add the gradients of the supervised loss times `weight`; returns that loss."""
        total = images.new_zeros(())
        for share, part, *own in self._parts(images, *answer):
            with self.autocast():
                losses = self._losses(self.student.train_logits(part, box), Answer(*own))
                loss = share * weight * sum(losses.values())
            self.backward(loss)
            total += loss.detach()
        return total

    def _losses(self, logits: TrainLogits, answer: Answer) -> dict[str, Tensor]:
        """Those of `HRDASegmentor.losses`, and `loss_skeleton` along middle lines where it is asked for."""
        losses = self.student.losses(logits, answer.labels, answer.weights, self.class_weights)
        if self.thin.skeleton_weight > 0:
            losses["loss_skeleton"] = self.thin.skeleton_weight * skeleton_loss(logits.fused, answer, self.thin)
        return losses

    def _parts(self, *batch: Tensor | None) -> Iterator[tuple[float, *tuple[Tensor | None, ...]]]:
        """Each part's share of the batch, and its part of every tensor."""
        count = len(batch[0])
        size = -(-count // self.accumulate)
        for first in range(0, count, size):
            parts = [None if tensor is None else tensor[first : first + size] for tensor in batch]
            yield len(parts[0]) / count, *parts

    def _source_pass(self, images: Tensor, answer: Answer, box: Box) -> dict[str, Tensor]:
        scalars: dict[str, Tensor] = {}
        for share, part, *own in self._parts(images, *answer):
            with self.autocast():
                logits = self.student.train_logits(part, box)
                losses = self._losses(logits, Answer(*own))
                loss = sum(losses.values())
                found = {"loss/source": loss, "loss/source_detail": losses["loss_detail"]}
                if "loss_skeleton" in losses:
                    found["loss/source_skeleton"] = losses["loss_skeleton"]
                if self.settings.feature_distance_weight > 0:
                    found["loss/feature_distance"] = self._feature_distance(part, own[0], logits.context_features[-1])
                    loss = loss + found["loss/feature_distance"]
            self.backward(share * loss)
            for name, value in found.items():
                scalars[name] = scalars.get(name, 0) + share * value.detach()
        return scalars

    def _feature_distance(self, images: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        settings = self.settings
        with torch.no_grad():
            reference = self.imagenet_encoder(self.student.context_images(images))[-1]
        distance = feature_distance(
            features,
            reference,
            labels,
            self._distance_classes,
            MIN_SHARE,
            self.student.num_classes,
            self.ranks.mean,
        )
        return settings.feature_distance_weight * distance

    @torch.no_grad()
    def _ask_teacher(self, images: Tensor, valid: Tensor | None) -> PseudoLabels:
        views, scales = self.settings.pseudo_label_views, self.settings.pseudo_label_scales
        logits = averaged_views(self._teacher_logits, images, views, scales)
        if self._cuts is not None:
            self._cuts.learn(logits, valid)
        pseudo = pseudo_labels(logits, self.settings, self.cuts(), self.ranks.mean)
        if valid is None:
            return pseudo
        return replace(pseudo, weights=pseudo.weights * valid)

    def _teacher_logits(self, images: Tensor) -> Tensor:
        with self.autocast():
            logits = torch.cat([self.teacher.crop_logits(part) for _, part in self._parts(images)])
        return logits.float()

    def _statistics(self, pseudo: PseudoLabels) -> dict[str, Tensor]:
        shares = pseudo.class_shares(self.student.num_classes, self.ranks.mean)
        return {
            "pseudo_label/confident_share": pseudo.confident_share,
            "pseudo_label/foreground_share": shares[1:].sum(),
            **{f"pseudo_label/share/{index}": share for index, share in enumerate(shares.unbind())},
        }
