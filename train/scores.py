"""Which scores people are shown on the page, in the terminal and in the experiment; files and TensorBoard hold all."""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = (
    "iou",
    "f1",
    "precision",
    "recall",
    "f1_2px",
    "boundary_f1_2px",
    "cldice",
    "ods",
    "best_iou",
    "best_threshold",
)
"""Scores of a class that are shown."""
THIN = {
    "mF1_2px": "F1 within 2 px",
    "mBoundaryF1_2px": "boundary F1 within 2 px",
    "mclDice": "clDice",
    "mODS": "F1 at the best threshold",
}
"""Means that say more of thin objects than mIoU does, with the names of their curves."""


def shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """The means and the scores of classes that are shown, of scores named `mIoU`, `iou/crack` and so on."""
    return {name: value for name, value in metrics.items() if "/" not in name or name.partition("/")[0] in SHOWN}
