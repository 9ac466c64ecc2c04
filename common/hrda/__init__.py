"""HRDA: domain-adaptive semantic segmentation. Knows nothing of Supervisely or of the apps.

Its names are looked up late: who reads settings or files alone waits for no torch, and who predicts for no training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.hrda.checkpoints import (
        CheckpointBundle,
        convert_reference_state_dict,
        load_checkpoint,
        save_checkpoint,
    )
    from common.hrda.checks import SettingsError
    from common.hrda.network.segmentor import HRDASegmentor, build_segmentor
    from common.hrda.prediction.predictor import Predictor
    from common.hrda.settings import InferenceSettings, ModelSettings, SelfTrainingSettings
    from common.hrda.training.self_training import SelfTraining

_MODULES = {
    "CheckpointBundle": "checkpoints",
    "HRDASegmentor": "network.segmentor",
    "InferenceSettings": "settings",
    "ModelSettings": "settings",
    "Predictor": "prediction.predictor",
    "SelfTraining": "training.self_training",
    "SelfTrainingSettings": "settings",
    "SettingsError": "checks",
    "build_segmentor": "network.segmentor",
    "convert_reference_state_dict": "checkpoints",
    "load_checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
}

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
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
