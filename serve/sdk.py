"""Where Supervisely's SDK is bent: the only module of the app that touches private names of it.

Private names that are overridden, and why:

- `_extract_model_files_from_checkpoint`, `_get_custom_model_params_from_args`,
  `_get_deploy_parameters_from_custom_checkpoint`: the SDK falls back to unpickling whatever the file holds.
  Checkpoints come from users: they are only ever read by `common.hrda.load_checkpoint`.
- `_download_custom_model`: nothing but the checkpoint is fetched; it holds its own settings, and the former
  app's config.py is a program.
- `_build_deploy_params_from_api`: there are no pretrained models to look up; said in a sentence.
- `_download_model_files`, `_load_model_headless`: requests to deploy that lack optional parts are completed.
- `_set_model_meta_custom_model`: classes and colours come from the checkpoint, not from a file beside it.
- `_format_output`: the SDK's own clients and command line still read `image_name`, which it calls `name` now.
- `_get_inference_settings`: a client's settings are checked before the SDK adds the defaults.
- `_inference_auto`: a `rectangle` that does not fit the image is told in a sentence.
- `_inference_by_cli_deploy_args`: local images are read one by one, with their EXIF orientation.
- `_reset_gui_state`: the SDK falls back to the tab of pretrained models, which is switched off here.
- `_run_server`: host and port can be chosen, and our routes are in place before the first request.

Private names that are read or set: `_app`, `_args`, `_inference_images`, `_is_cli_deploy`, `_model_meta`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import supervisely.io.env as sly_env
import uvicorn
from fastapi import FastAPI
from supervisely import Annotation, ObjClass, ProjectMeta, Rectangle, TagMeta, TagValueType
from supervisely.geometry.bitmap import Bitmap
from supervisely.nn.inference import SemanticSegmentation
from supervisely.nn.inference.gui import ServingGUITemplate
from supervisely.nn.inference.inference_request import InferenceRequest
from supervisely.nn.model.prediction import Prediction
from supervisely.nn.utils import ModelSource, RuntimeType

from common.assets import use_assets
from serve.deployment import default_device
from serve.errors import RequestError
from serve.settings import without_client_arguments


class SdkServer(SemanticSegmentation):
    """The SDK's server with the overrides that this app needs, and plain methods for what is private in it."""

    def __init__(self, host: str, port: int, **options: Any) -> None:
        self._address = (host, port)
        super().__init__(sliding_window_mode="none", **options)

    # What the rest of the app uses instead of private names

    def set_model_meta(self, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> None:
        """Tell clients the classes, in the order of the masks' indices, and their colours."""
        objects = [ObjClass(name, Bitmap, color=list(colour)) for name, colour in zip(classes, palette, strict=True)]
        self._model_meta = ProjectMeta(objects, [TagMeta("confidence", TagValueType.ANY_NUMBER)])

    def predict_now(self, images: Iterable[np.ndarray], state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Results for `images`, in the form that the SDK's clients expect."""
        return self.inference_requests_manager.run(self._inference_images, images, dict(state))

    def predict_later(self, images: Iterable[np.ndarray], state: Mapping[str, Any]) -> str:
        """Start a job over `images`; its uuid, by which the SDK's routes give progress and results."""
        request: InferenceRequest
        request, _ = self.inference_requests_manager.schedule_task(self._inference_images, images, dict(state))
        return request.uuid

    def annotate(self, image: np.ndarray, settings: Mapping[str, Any]) -> Annotation:
        """Annotation of one image, without a request."""
        return self.inference([image], self._get_inference_settings({"settings": dict(settings)}))[0]

    def serve(self) -> None:
        """Set up the app's routes and, on the command line, answer requests until stopped."""
        super().serve()
        self.add_routes(self._app.get_server())
        use_assets(self._app.get_server())
        if self._is_cli_deploy:
            host, port = self._address
            uvicorn.run(self._app, host=host, port=port, ws="websockets")

    def add_routes(self, server: FastAPI) -> None:
        """Called once, when the SDK's routes are there and no request has come yet."""
        raise NotImplementedError

    def predict_local(self, source: str, output: str, settings: Mapping[str, Any], draw: bool) -> None:
        """Predict the image or folder `source` into the folder `output`."""
        raise NotImplementedError

    # Overrides of private names

    def _run_server(self) -> None:
        """`serve` does it, once our routes are in place."""

    def _extract_model_files_from_checkpoint(self, checkpoint_path: str) -> dict[str, str]:
        return {}

    def _get_custom_model_params_from_args(self) -> tuple[dict[str, str], str, dict[str, Any], bool]:
        path = self._args.model
        return {"checkpoint": path}, ModelSource.CUSTOM, {}, not Path(path).is_file()

    def _get_deploy_parameters_from_custom_checkpoint(
        self, checkpoint_path: str, device: str | None, runtime: str
    ) -> dict[str, Any]:
        params = _completed({"model_files": {"checkpoint": checkpoint_path}, "device": device, "runtime": runtime})
        if not Path(checkpoint_path).is_file():
            params["model_files"] = self._download_custom_model(params["model_files"], False)
        return params

    def _download_model_files(self, deploy_params: dict[str, Any], log_progress: bool = True) -> dict[str, str]:
        # In place: the SDK goes on with the dict that it passed.
        deploy_params.update(_completed(deploy_params))
        return super()._download_model_files(deploy_params, log_progress)

    def _download_custom_model(
        self, model_files: dict[str, str], log_progress: bool = True, model_source: str = ModelSource.CUSTOM
    ) -> dict[str, str]:
        checkpoint = {"checkpoint": model_files["checkpoint"]}
        if sly_env.team_id(raise_not_found=False) is None:
            raise RequestError(f"A checkpoint in Team Files needs TEAM_ID. Received: {checkpoint['checkpoint']}.")
        try:
            return super()._download_custom_model(checkpoint, log_progress, model_source)
        except FileNotFoundError as error:
            raise RequestError(
                f"There is no checkpoint at {checkpoint['checkpoint']}, neither in Team Files nor on this machine."
            ) from error

    def _load_model_headless(self, **deploy_params: Any) -> None:
        super()._load_model_headless(**_completed(deploy_params))

    def _build_deploy_params_from_api(self, model_name: str, deploy_params: dict[str, Any] | None = None) -> Any:
        raise RequestError(
            f"There are no pretrained HRDA models. Deploy the path of a checkpoint. Received: {model_name!r}."
        )

    def _set_model_meta_custom_model(self, model_info: dict[str, Any]) -> None:
        """`load_model` sets it."""

    def _get_inference_settings(self, state: dict[str, Any]) -> dict[str, Any]:
        settings = without_client_arguments(state.get("settings") or {}, state)
        given = {**state, "settings": settings}
        for place in (given, settings):
            if place.get("rectangle", ...) is None:
                del place["rectangle"]
        return super()._get_inference_settings(given)

    def _format_output(self, predictions: list[Prediction]) -> list[dict[str, Any]]:
        return [result | {"image_name": result["name"]} for result in super()._format_output(predictions)]

    def _inference_auto(
        self, source: list[str | np.ndarray], settings: dict[str, Any]
    ) -> tuple[list[Annotation], list[dict[str, Any]]]:
        shared = [settings["rectangle"]] * len(source) if "rectangle" in settings else []
        for image, rectangle in zip(source, settings.get("rectangles") or shared, strict=False):
            if isinstance(image, np.ndarray):
                _check_inside(rectangle, image)
        return super()._inference_auto(source, settings)

    def _inference_by_cli_deploy_args(self) -> None:
        args = self._args
        if args.project_id is None and args.dataset_id is None and args.image_id is None:
            self.predict_local(args.input, args.output, args.settings or {}, args.draw)
        else:
            super()._inference_by_cli_deploy_args()

    def _reset_gui_state(self) -> None:
        if isinstance(self.gui, ServingGUITemplate):
            self.gui.model_source_tabs.set_active_tab(ModelSource.CUSTOM)


def read_rectangle(value: Any) -> Rectangle:
    """A region of an image as the labelling tools send it.

    Raises:
        RequestError: not a rectangle in Supervisely's JSON.
    """
    try:
        return Rectangle.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RequestError(
            'rectangle must be {"points": {"exterior": [[left, top], [right, bottom]], "interior": []}}. '
            f"Received: {value!r}."
        ) from error


def _check_inside(value: Any, image: np.ndarray) -> None:
    rectangle = read_rectangle(value)
    height, width = image.shape[:2]
    if not Rectangle.from_size((height, width)).contains(rectangle):
        raise RequestError(
            f"rectangle must lie inside the image of {width}×{height} pixels. Received: left {rectangle.left}, "
            f"top {rectangle.top}, right {rectangle.right}, bottom {rectangle.bottom}."
        )


def _completed(deploy_params: Mapping[str, Any]) -> dict[str, Any]:
    """A request to deploy with nothing missing that the SDK takes for granted.

    Raises:
        RequestError: no checkpoint is named, or the model would be converted.
    """
    params = deploy_params
    files = params.get("model_files") or {"checkpoint": params.get("checkpoint_url")}
    if not isinstance(files, Mapping) or not isinstance(files.get("checkpoint"), str) or not files["checkpoint"]:
        raise RequestError(
            "A checkpoint is needed, there are no pretrained HRDA models: give its path as "
            f"model_files['checkpoint']. Received: model_files {params.get('model_files')!r}."
        )
    runtime = params.get("runtime") or RuntimeType.PYTORCH
    if runtime != RuntimeType.PYTORCH:
        raise RequestError(f"The runtime must be '{RuntimeType.PYTORCH}'. Received: {runtime!r}.")
    completed = {
        "model_files": dict(files),
        "model_source": params.get("model_source") or ModelSource.CUSTOM,
        "model_info": params.get("model_info") or {},
        "device": params.get("device") or default_device(),
        "runtime": runtime,
    }
    # The SDK takes this one out again; everything else would reach `load_model`, which has no use for it.
    return completed | {name: params[name] for name in ("without_workflow",) if name in params}
