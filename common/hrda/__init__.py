"""HRDA: domain-adaptive semantic segmentation. Knows nothing of Supervisely or of the apps."""

from typing import TYPE_CHECKING, Any

from common.hrda.checkpoints import CheckpointBundle, convert_reference_state_dict, load_checkpoint, save_checkpoint
from common.hrda.checks import SettingsError
from common.hrda.network.segmentor import HRDASegmentor, build_segmentor
from common.hrda.prediction.predictor import Predictor
from common.hrda.settings import InferenceSettings, ModelSettings, SelfTrainingSettings

if TYPE_CHECKING:
    from common.hrda.training.self_training import SelfTraining

__all__ = [
    "CheckpointBundle",
    "HRDASegmentor",
    "InferenceSettings",
    "ModelSettings",
    "Predictor",
    "SelfTraining",
    "SelfTrainingSettings",
    "SettingsError",
    "build_segmentor",
    "convert_reference_state_dict",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    # Looked up late: training needs kornia, whose import a prediction does without.
    if name == "SelfTraining":
        from common.hrda.training.self_training import SelfTraining

        return SelfTraining
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
