"""HRDA: domain-adaptive semantic segmentation. Knows nothing of Supervisely or of the apps."""

from common.hrda.checkpoints import CheckpointBundle, convert_reference_state_dict, load_checkpoint, save_checkpoint
from common.hrda.network.segmentor import HRDASegmentor, build_segmentor
from common.hrda.prediction.predictor import Predictor
from common.hrda.settings import InferenceSettings, ModelSettings, SelfTrainingSettings, SettingsError
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
