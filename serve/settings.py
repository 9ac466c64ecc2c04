"""Settings of a prediction: what a client may send, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml

from common.hrda.settings import InferenceSettings, SettingsError, closest

INPUT_SCALES = ("trained", "original")

SDK_SETTINGS = frozenset(
    {
        # Read by the SDK before the model sees the image.
        "classes",
        "conf",
        "existing_objects_iou_thresh",
        "inference_mode",
        "rectangle",
        "rectangles",
        "sliding_window_mode",
        "sliding_window_params",
        # Arguments of ModelAPI.predict, which sends every text and number it was given as a setting.
        "cache_datasets_on_model",
        "cache_project_on_model",
        "dataset_ids",
        "direction",
        "duration",
        "end_frame",
        "frames_count",
        "image_ids",
        "img_size",
        "iou_merge_threshold",
        "model_prediction_suffix",
        "num_frames",
        "output_project_id",
        "project_ids",
        "recursive",
        "show_progress",
        "start_frame",
        "start_frame_index",
        "step",
        "tracker",
        "tracking",
        "upload_mode",
        "video_ids",
    }
)
"""Settings of the SDK and its clients that say nothing to this model. Other unknown names are refused."""


@dataclass(frozen=True)
class ServeSettings(InferenceSettings):
    """How a request is predicted. Defaults and explanations for users: inference_settings.yaml."""

    input_scale: str = "trained"
    """'trained': images are scaled as in training. 'original': the photo's own resolution, for details
    of a few pixels that a reduction would lose."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_scale not in INPUT_SCALES:
            hint = closest(str(self.input_scale), INPUT_SCALES)
            raise SettingsError(f"Unknown input_scale {self.input_scale!r}: {hint}")

    def windows(self, crop_size: tuple[int, int]) -> InferenceSettings:
        """The windows for a model that was trained on crops of `crop_size`, nothing left open.

        Raises:
            SettingsError: the stride is larger than the window, which would leave pixels out.
        """
        window = self.window or crop_size
        stride = self.stride or (window[0] // 2, window[1] // 2)
        return InferenceSettings(window=window, stride=stride, batch_size=self.batch_size)


def read_settings(values: Mapping[str, Any]) -> ServeSettings:
    """The model's settings among those of a request.

    Args:
        values: names and values. One number stands for both sides of `window` and `stride`; text, as it
            comes from a command line, is read as YAML. Names of `SDK_SETTINGS` are passed over.

    Raises:
        SettingsError: unknown name (with the nearest valid one) or bad value.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"settings must be names and values. Received: {values!r}.")
    own = {field.name for field in fields(ServeSettings)}
    chosen = {name: _plain(name, value) for name, value in values.items() if name in own or name not in SDK_SETTINGS}
    return ServeSettings.from_dict(chosen)


def without_client_arguments(settings: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without arguments of `ModelAPI.predict` that only share a name with ours.

    The SDK sends its arguments twice. Its `batch_size` counts images a batch and comes in the request's
    `state` too; its `stride` is the frame step of a video and comes as `step` too.
    """
    twins = {"batch_size": state.get("batch_size"), "stride": settings.get("step")}
    return {name: value for name, value in settings.items() if value is None or twins.get(name) != value}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"{name} cannot be read. Received: {value!r}.") from error
    if name in ("window", "stride") and isinstance(value, int) and not isinstance(value, bool):
        return [value, value]
    return value
