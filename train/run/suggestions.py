"""Which unlabelled photos a label would help most: uncertain ones, unlike each other and unlike the labelled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.data.folders import ImageRecord
from common.data.images import read_image
from common.hrda import Predictor
from common.hrda.pixels import normalise, resize_image
from common.hrda.prediction.runtime import TorchNetwork


@dataclass(frozen=True)
class Suggestion:
    """A photo that is worth labelling."""

    photo: str
    """Dataset and name."""
    path: Path
    uncertainty: float
    """Mean entropy of the answers for its pixels, in nats."""
    distance: float | None
    """From the nearest photo that is labelled or suggested before, in standard deviations of the features; None where
    there is none."""


@dataclass(frozen=True)
class Look:
    """What a network sees in a photo."""

    uncertainty: float
    features: np.ndarray
    """D float32: the encoder's features, mean over the photo."""


def suggest(
    photos: Sequence[ImageRecord],
    labelled: Iterable[ImageRecord],
    predictor: Predictor,
    count: int,
    seen: Callable[[int, int], None] = lambda done, total: None,
) -> list[Suggestion]:
    """The photos that are most worth labelling, the best first.

    Args:
        photos: to choose from.
        labelled: photos that are labelled already, from which the others should differ.
        predictor: of the run's teacher, on its device.
        count: at most so many.
        seen: gets (done, of) after each photo.

    Raises:
        ImageError: a photo cannot be read.
    """
    looks = []
    for done, record in enumerate(photos, 1):
        looks.append(look_at(read_image(record.image_path), predictor))
        seen(done, len(photos))
    known = [features_of(read_image(record.image_path), predictor) for record in labelled]
    order = spread_out(
        np.array([look.uncertainty for look in looks]),
        np.stack([look.features for look in looks]),
        np.stack(known) if known else None,
        count,
    )
    return [
        Suggestion(photos[index].key, photos[index].image_path, looks[index].uncertainty, distance)
        for index, distance in order
    ]


def look_at(image: np.ndarray, predictor: Predictor) -> Look:
    """What the network of `predictor` sees in an RGB image H×W×3 uint8."""
    _, probabilities = predictor.predict_with_probabilities(image)
    # Class by class: of a large photo not all maps need to be held.
    entropy = sum(float(-(plane * np.log(np.maximum(plane, 1e-12))).mean()) for plane in probabilities)
    return Look(entropy, features_of(image, predictor))


@torch.inference_mode()
def features_of(image: np.ndarray, predictor: Predictor) -> np.ndarray:
    """The encoder's features of a whole RGB image H×W×3 uint8 at the size of a training crop, mean over each map: D."""
    network: TorchNetwork = predictor.model
    pixels = torch.from_numpy(resize_image(image, network.crop_size)).to(predictor.device)
    maps = network.features(normalise(pixels.permute(2, 0, 1)[None]))
    return torch.cat([each.mean((2, 3))[0] for each in maps]).float().cpu().numpy()


def spread_out(
    uncertainty: np.ndarray, features: np.ndarray, labelled: np.ndarray | None, count: int
) -> list[tuple[int, float | None]]:
    """Choose one after the other what is uncertain and far from what is chosen or labelled.

    As k-means++ with weights chooses its centres (Arthur and Vassilvitskii, 2007), without its draws: each time the
    highest product of uncertainty and squared distance. The first is the most uncertain one where none is labelled.

    Args:
        uncertainty: N, at least 0.
        features: N×D.
        labelled: M×D, or None.
        count: at most so many.

    Returns:
        Indices, each with its distance when it was chosen; None where there was nothing to be far from.
    """
    known = features[:0] if labelled is None else labelled
    spread = np.maximum(np.concatenate([features, known]).std(axis=0), 1e-6) * np.sqrt(features.shape[1])
    features = features / spread
    nearest = np.full(len(features), np.inf)
    for other in known / spread:
        nearest = np.minimum(nearest, ((features - other) ** 2).sum(axis=1))
    left, chosen = np.ones(len(features), bool), []
    for _ in range(min(count, len(features))):
        worth = uncertainty * np.where(np.isinf(nearest), 1.0, nearest)
        index = int(np.argmax(np.where(left, worth, -1.0)))
        chosen.append((index, None if np.isinf(nearest[index]) else float(np.sqrt(nearest[index]))))
        left[index] = False
        nearest = np.minimum(nearest, ((features - features[index]) ** 2).sum(axis=1))
    return chosen
