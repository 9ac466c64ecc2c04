"""Settings of a prediction: what a client may send, read strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from common.hrda.checks import (
    LONGEST_RECEIVED,
    Count,
    Expected,
    Fraction,
    SettingsError,
    closest,
    received,
    require,
    schema,
)
from common.hrda.prediction.labelling import LabelRule
from common.hrda.settings import InferenceSettings, Precision
from common.plain_yaml import read_field

InputScale = Literal["trained", "original"]
BEST = "best"
"""As `thresholds`: those at which the model was best in its validation."""

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


@schema
class ServeSettings(InferenceSettings):
    """How a request is predicted. Defaults and explanations for users: inference_settings.yaml."""

    input_scale: InputScale = "trained"
    """'trained': images are scaled as in training. 'original': the photo's own resolution, for details
    of a few pixels that a reduction would lose."""
    long_side: Annotated[Annotated[int, Field(ge=16)] | None, Expected("a whole number from 16, or null")] = None
    """Images whose longest side would still be larger are scaled down to it; null: never."""
    precision: Precision = "float32"
    """In what the network computes: 'float32', 'bfloat16', or 'float16' (GPU only)."""
    compile: bool = False
    """Through torch.compile: the first windows take a minute, those after them less time. Where it does not work, it is
    left out and the log says so."""
    thresholds: Annotated[
        Literal["best"] | Fraction | dict[str, Fraction],
        Expected('best, probabilities from 0 to 1 by class name, such as {"crack": 0.35}, or one for all classes'),
    ] = BEST
    """Probability by class name from which a pixel takes the class; the most probable class elsewhere. One number is
    for every class but the background. 'best': those of the model, where its training measured them."""
    min_component: Count = 0
    """Connected areas of fewer pixels become background; 0 keeps all."""
    background: bool = True
    """Whether the answer has a label for the background."""
    confidence: bool = False
    """Whether each label carries its mean probability as a tag."""
    strict: bool = False
    """Whether one image that cannot be read ends a request or a job of several; else the others are predicted."""

    def rule(self, classes: Sequence[str], best: Mapping[str, float] = MappingProxyType({})) -> LabelRule:
        """How labels are chosen for a model that tells `classes` apart, the background first.

        Args:
            classes: names by index.
            best: thresholds by class name that were best in the model's validation.

        Raises:
            SettingsError: a threshold for a class that the model does not have, or for the background.
        """
        chosen = self.chosen_thresholds(classes, best)
        return LabelRule({classes.index(name): value for name, value in chosen.items()}, self.min_component)

    def chosen_thresholds(self, classes: Sequence[str], best: Mapping[str, float]) -> dict[str, float]:
        """Threshold by class name; of the classes that have none the most probable one counts.

        Raises:
            SettingsError: as `rule`.
        """
        if self.thresholds == BEST:
            return {name: best[name] for name in classes[1:] if name in best}
        if not isinstance(self.thresholds, dict):
            return dict.fromkeys(classes[1:], self.thresholds)
        for name in self.thresholds:
            if name not in classes[1:]:
                raise SettingsError(f"thresholds names {received(name)}: {closest(name, classes[1:])}")
        return dict(self.thresholds)


def said(thresholds: Mapping[str, float]) -> str:
    """Thresholds as a person reads them: 'crack 0.38, stain 0.5'."""
    return ", ".join(f"{name} {value:.2g}" for name, value in thresholds.items())


def read_settings(values: Mapping[str, Any]) -> ServeSettings:
    """The model's settings among those of a request.

    Args:
        values: names and values. One number stands for both sides of `window` and `stride`; text, as it
            comes from a command line, is read as YAML. Names of `SDK_SETTINGS` are passed over.

    Raises:
        SettingsError: unknown name (with the nearest valid one) or bad value.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"settings must be names and values. Received: {received(values)}.")
    own = {f.name for f in fields(ServeSettings)}
    values = with_thresholds(values)
    chosen = {name: _plain(name, value) for name, value in values.items() if name in own or name not in SDK_SETTINGS}
    return ServeSettings.from_dict(chosen)


def with_thresholds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with the SDK's `conf` as what it means here: one threshold for all classes, where none are given.

    Raises:
        SettingsError: `conf` is no probability.
    """
    rest = {name: value for name, value in settings.items() if name != "conf"}
    if settings.get("conf") is None:
        return rest
    conf = _plain("conf", settings["conf"])
    is_number = isinstance(conf, int | float) and not isinstance(conf, bool)
    require(is_number and 0 <= conf <= 1, "conf", "a probability from 0 to 1", conf)
    return {"thresholds": conf} | rest


def without_client_arguments(settings: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without arguments of `ModelAPI.predict` that only share a name with ours.

    The SDK sends its arguments twice. Its `batch_size` counts images a batch and comes in the request's
    `state` too; its `stride` is the frame step of a video and comes as `step` too.
    """
    twins = {"batch_size": state.get("batch_size"), "stride": settings.get("step")}
    return {name: value for name, value in settings.items() if value is None or twins.get(name) != value}


def without_foreign(settings: Mapping[str, Any], classes: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """`settings` without what belongs to other models, and the names that were passed over.

    A labelling tool sends what stands in its editor, which may be of the model before this one; and it shows nothing of
    a refusal's sentence. A script is refused, because a name that is passed over there is a mistake that nobody sees.

    Args:
        settings: of the request.
        classes: of the model, the background first.
    """
    own = {f.name for f in fields(ServeSettings)} | SDK_SETTINGS
    kept = {name: value for name, value in settings.items() if name in own}
    passed_over = [f"setting {received(name)}" for name in settings if name not in own]
    wanted, thresholds = kept.get("classes"), kept.get("thresholds")
    if isinstance(wanted, list):
        kept["classes"] = [name for name in wanted if name in classes]
        passed_over += [f"class {received(name)}" for name in wanted if name not in classes]
    if isinstance(thresholds, dict):
        kept["thresholds"] = {name: value for name, value in thresholds.items() if name in classes[1:]}
        passed_over += [f"threshold of {received(name)}" for name in thresholds if name not in classes[1:]]
    return kept, passed_over


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str):
        read = read_field(name[:LONGEST_RECEIVED] if name.isidentifier() else received(name), value)
        # YAML takes yes, no, on and off for flags too, which nobody else does.
        value = value if isinstance(read, bool) and value.strip().lower() not in ("true", "false") else read
    if name in ("window", "stride") and isinstance(value, int) and not isinstance(value, bool):
        return [value, value]
    return value
