"""The baseline: an iteration of HRDA as papers and reference spell it out, eager, each step by itself.

The network is that of `benchmarks.plain_network`. The teacher is averaged tensor by tensor, images are mixed one by one
and blurred with the whole kernel. What the reference does besides (accuracies for its log, pictures) is left out.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from benchmarks.plain_network import PlainNetwork
from benchmarks.plain_sliding import plain_crop_logits
from common.hrda import SelfTrainingSettings
from common.hrda.pixels import denormalise, normalise
from common.hrda.training.mixing import blur_kernel_size
from common.hrda.training.self_training import StepDraws
from common.hrda.training.teacher import averaging_factor


class PlainTraining:
    """Iterations of the mode 'uda' with the published pseudo-label rule, the plain way.

    Args:
        student, teacher: networks; the teacher's parameters follow the student's.
        settings: of the method.
    """

    def __init__(self, student: PlainNetwork, teacher: PlainNetwork, settings: SelfTrainingSettings) -> None:
        self.student, self.teacher, self.settings = student, teacher, settings

    def step(self, images: Tensor, labels: Tensor, target: Tensor, *, iteration: int, draws: StepDraws) -> list[float]:
        """Add an iteration's gradients; returns the losses: source's, mixed."""
        self._follow(iteration)
        fused, detail = self.student.losses(images, labels, None, draws.source_box)
        source_loss = fused + detail
        source_loss.backward()
        with torch.no_grad():
            probabilities = plain_crop_logits(self.teacher, target).softmax(dim=1)
            confidence, pseudo = probabilities.max(dim=1)
            share = (confidence >= self.settings.pseudo_label_threshold).sum().item() / confidence.numel()
            trust = torch.full_like(confidence, share)
            mixed = [self._mix(index, images, labels, target, pseudo, trust, draws) for index in range(len(images))]
        mixed_images, mixed_labels, weights = (torch.stack(parts) for parts in zip(*mixed, strict=True))
        fused, detail = self.student.losses(mixed_images, mixed_labels, weights, draws.second_box)
        mixed_loss = fused + detail
        mixed_loss.backward()
        return [source_loss.item(), mixed_loss.item()]

    @torch.no_grad()
    def _follow(self, iteration: int) -> None:
        factor = averaging_factor(iteration, self.settings.alpha)
        for ours, theirs in zip(self.teacher.model.parameters(), self.student.model.parameters(), strict=True):
            ours.copy_(factor * ours + (1 - factor) * theirs)

    def _mix(
        self,
        index: int,
        images: Tensor,
        labels: Tensor,
        target: Tensor,
        pseudo: Tensor,
        trust: Tensor,
        draws: StepDraws,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image, labels and weights of one mixed crop."""
        mask = draws.mask[index].to(images.dtype)
        image = mask * images[index] + (1 - mask) * target[index]
        label = (mask * labels[index] + (1 - mask) * pseudo[index]).long()
        weight = mask + (1 - mask) * trust[index]
        if draws.jitter is not None:
            jitter = replace(
                draws.jitter,
                **{name: getattr(draws.jitter, name)[index : index + 1] for name in ("brightness", "contrast")},
                **{name: getattr(draws.jitter, name)[index : index + 1] for name in ("saturation", "hue")},
            )
            image = normalise(jitter(denormalise(image[None]) / 255) * 255)[0]
        if draws.sigma is not None:
            kernel = blur_kernel_size((image.shape[-2], image.shape[-1]))
            image = gaussian_blur2d(image[None], kernel, (draws.sigma, draws.sigma), border_type="reflect")[0]
        return image, label, weight
