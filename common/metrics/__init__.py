"""Scores of semantic segmentation, with those that suit thin objects; docs/metrics.md says what each means."""

from common.metrics.segmentation import TOLERANCES, SegmentationMetrics
from common.metrics.sweep import THRESHOLDS

__all__ = ["THRESHOLDS", "TOLERANCES", "SegmentationMetrics"]
