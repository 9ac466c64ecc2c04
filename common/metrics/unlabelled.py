"""How good predictions are, told from unlabelled photos: three published measures, to choose between networks of a run.

- Certainty: entropy with class balance, the mutual information between pixels and classes (Bridle et al., NIPS 1991; as
  a validator in Musgrave et al., "Three new validators for unsupervised domain adaptation", 2022).
- Density: soft neighbourhood density (Saito et al., "Tune it the right way", ICCV 2021).
- Mixture: MixVal (Hu et al., "Mixed samples as probes for unsupervised model selection", NeurIPS 2023).

None of them says how much is found: they compare networks that learn the same on the same photos. Runs choose by the
first, which agreed best with labels where one class is thin (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

MEASURE = "certainty"
"""Name of the measure by which the networks of a run are compared."""
MIXED_SHARE = 0.55
"""Share of the first of two photos in their mixture (MixVal's λ)."""
_PIXELS = 2000
"""Of each photo, drawn at random and the same for all networks."""
_TEMPERATURE = 0.05
_ROWS_AT_ONCE = 512
_LEAST = 1e-12


def certainty(probabilities: np.ndarray) -> float:
    """How much the answers for pixels say of their classes, from 0 to 1; more is better.

    The entropy of the mean answer less the mean entropy of the answers, as a share of the former, so that a class that
    is rare does not make it small: sure answers are worth something only if they are not all the same.

    Args:
        probabilities: P×C, of pixels.
    """
    of_classes = _entropy(probabilities.mean(axis=0, keepdims=True))
    return 0.0 if of_classes < _LEAST else 1 - _entropy(probabilities) / of_classes


def density(probabilities: np.ndarray) -> float:
    """Soft neighbourhood density from 0 to 1; more is better.

    The entropy of a pixel's similarities to all others: high where answers gather in few, dense groups.

    Args:
        probabilities: P×C, of pixels, two at least. Time grows with the square of P.
    """
    answers = torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(probabilities, np.float32)))
    total = 0.0
    for first in range(0, len(answers), _ROWS_AT_ONCE):
        similar = answers[first : first + _ROWS_AT_ONCE] @ answers.T
        own = torch.arange(len(similar))
        similar[own, own + first] = -torch.inf
        log_shares = (similar / _TEMPERATURE).log_softmax(dim=1)
        total -= float(torch.where(log_shares.isfinite(), log_shares.exp() * log_shares, 0).sum())
    return total / len(answers) / float(np.log(len(answers) - 1))


def mixture(first: np.ndarray, second: np.ndarray, mixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often the answer to a mixture of two photos is that to the photo of which there is more.

    Args:
        first, second, mixed: H×W uint8 class indices that a network gives for the photos and their mixture.

    Returns:
        Pixels that agree and all pixels, int64 each: where both photos have the same class, and where they differ.
    """
    agrees, differs = mixed == first, first != second
    counts = [(np.count_nonzero(agrees & part), np.count_nonzero(part)) for part in (~differs, differs)]
    found, all_of_them = np.array(counts, np.int64).T
    return found, all_of_them


def expected_threshold(probabilities: np.ndarray) -> float:
    """The probability that as many pixels reach as are expected to be of the class, from 0.01 to 0.99.

    Args:
        probabilities: P, of one class.
    """
    return float(np.clip(np.quantile(probabilities, 1 - probabilities.mean()), 0.01, 0.99))


def _entropy(probabilities: np.ndarray) -> float:
    """Mean entropy of rows P×C in nats."""
    return float(-(probabilities * np.log(np.maximum(probabilities, _LEAST))).sum(axis=1).mean())


class UnlabelledMetrics:
    """Gathers what a network says of unlabelled photos; `compute` turns it into what networks are compared by.

    Args:
        classes: names by index; index 0 is the background.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self._pixels: list[np.ndarray] = []

    @property
    def pixels(self) -> np.ndarray:
        """P×C: the answers for the pixels that were drawn so far."""
        return np.concatenate(self._pixels)

    def update(self, probabilities: Iterable[np.ndarray]) -> None:
        """Take pixels of a photo.

        Args:
            probabilities: H×W float of each class, the background first, one by one.
        """
        places, values = None, []
        for plane in probabilities:
            if places is None:
                # The number of the photo is the seed: every network is looked at in the same places.
                rng = np.random.default_rng(len(self._pixels))
                places = rng.choice(plane.size, min(_PIXELS, plane.size), replace=False)
            values.append(plane.ravel()[places])
        self._pixels.append(np.stack(values, axis=1))

    def compute(self) -> dict[str, float]:
        """`certainty`, and for each class but the background `best_threshold/<class>`, at which as much of it is found
        as is expected."""
        pixels = self.pixels
        thresholds = {
            f"best_threshold/{name}": expected_threshold(pixels[:, index])
            for index, name in enumerate(self._classes)
            if index > 0
        }
        return {MEASURE: certainty(pixels)} | thresholds
