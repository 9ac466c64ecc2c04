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
- `_create_label`: the SDK makes a label of the background in any case and has no place for confidences.
- `_inference_auto`: a `rectangle` that does not fit the image is told in a sentence.
- `_inference_image_ids`: waits for its own threads for a second at every request, where no labels are uploaded.
- `_inference_video_id`: see `serve.sources.videos` for what the SDK does to videos.
- `_inference_project_id`, `_run_speedtest`: what is not there is told in a sentence, before the SDK fails at it (or,
  at a project without images, never ends).
- `_unfreeze_model`: requests that come while the model wakes wait for it.
- `_schedule_freeze_on_inactivity`: of two requests at once one would leave a thread behind for an hour.
- `_model_meta`: requests keep the classes of the model that they began with.
- `_inference_by_cli_deploy_args`: local images are read one by one, with their EXIF orientation.
- `_reset_gui_state`: the SDK falls back to the tab of pretrained models, which is switched off here.
- `_run_server`: host and port can be chosen, and our routes are in place before the first request.

Private names that are read or set: `_app`, `_args`, `_inference_images`, `_is_cli_deploy`, `_model_frozen`,
`_set_common_deploy_params`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import supervisely.io.env as sly_env
import uvicorn
from fastapi import FastAPI, Request
from supervisely import Annotation, Api, Label, ProjectMeta
from supervisely.nn.inference import SemanticSegmentation
from supervisely.nn.inference.gui import ServingGUITemplate
from supervisely.nn.inference.inference_request import InferenceRequest
from supervisely.nn.model.prediction import Prediction
from supervisely.nn.utils import ModelSource

from common.assets import use_assets
from common.hrda.checks import received
from serve.errors import RequestError, Unavailable
from serve.gate.admission import Admission
from serve.gate.bodies import IMAGE_IDS
from serve.gate.deploy_request import completed
from serve.gate.monitoring import Metrics
from serve.gate.rectangles import check_inside
from serve.jobs import Job, Jobs
from serve.limits import Limits
from serve.model.deployment import Deployment
from serve.model.labels import LabelledMask, model_meta
from serve.model.settings import without_client_arguments
from serve.sources.instance_images import InstanceImages, find_images, require_image_project
from serve.sources.uploads import UploadedImages
from serve.sources.videos import FrameChoice, Frames, FrameSource, InstanceVideo, VideoFile

_DESCRIPTION = ("checkpoint_info", "device", "runtime", "model_source", "model_precision")
"""Public attributes in which the SDK keeps what is deployed."""


@dataclass
class Served:
    """A deployment with what clients are told about it."""

    deployment: Deployment | None = None
    meta: ProjectMeta | None = None
    classes: list[str] | None = None


_BEGUN_WITH: ContextVar[Served | None] = ContextVar("the model that a request began with", default=None)


class SdkServer(SemanticSegmentation):
    """The SDK's server with the overrides that this app needs, and plain methods for what is private in it."""

    def __init__(self, host: str, port: int, **options: Any) -> None:
        self._address = (host, port)
        self._served = Served()
        self._deploying, self._waking, self._dozing = threading.Lock(), threading.RLock(), threading.Lock()
        self.limits = Limits.from_environment()
        self.admission = Admission(self.limits)
        self.metrics = Metrics(self.limits, lambda: self.admission.held, self.describe_model)
        super().__init__(sliding_window_mode="none", **options)
        self.cache = InstanceImages(self.limits, sly_env.smart_cache_container_dir())
        self.inference_requests_manager = Jobs(self.limits, self.metrics, self.on_one_model)

    # What the rest of the app uses instead of private names

    @property
    def deployment(self) -> Deployment | None:
        """The model that predicts: for a request in progress the one that it began with."""
        return self.present.deployment

    @deployment.setter
    def deployment(self, deployment: Deployment | None) -> None:
        """Put `deployment` in place of what was deployed before; classes and colours are its own."""
        if deployment is None:
            self._served = Served(None, self._served.meta, self._served.classes)
            return
        meta = model_meta(deployment.classes, deployment.palette)
        self._served = Served(deployment, meta, list(deployment.classes))

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the masks' indices."""
        return self.present.classes

    @classes.setter
    def classes(self, names: list[str] | None) -> None:
        self.present.classes = names

    @contextmanager
    def on_one_model(self) -> Iterator[None]:
        """Within it, model and classes stay what they are now, whatever is deployed meanwhile."""
        self._unfreeze_model()
        token = _BEGUN_WITH.set(self._served)
        try:
            yield
        finally:
            _BEGUN_WITH.reset(token)

    def predict_now(self, images: Sequence[np.ndarray], state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Results for `images`, in the form that the SDK's clients expect."""
        return self.inference_requests_manager.run(self._inference_images, images, dict(state))

    def predict_later(self, images: UploadedImages, state: Mapping[str, Any]) -> str:
        """Start a job over `images`; its uuid, by which the SDK's routes give progress and results."""
        jobs = self.inference_requests_manager
        job = jobs.create()
        images.ask_before_each(job.goes_on)
        jobs.schedule_task(self._inference_images, images, dict(state), inference_request=job)
        return job.uuid

    def predict_video_later(self, path: Path, state: Mapping[str, Any]) -> str:
        """Start a job over frames of a video file, which is removed at its end; the job's uuid."""
        job, future = self.inference_requests_manager.schedule_task(self.predict_video_file, path, dict(state))
        future.add_done_callback(lambda _: path.unlink(missing_ok=True))
        return job.uuid

    def predict_video_file(self, path: Path, state: dict[str, Any], inference_request: Job) -> None:
        """Predict frames of a video file."""
        with closing(VideoFile(path, "that was uploaded", self.limits)) as video:
            self.predict_frames(video, {}, state, inference_request)

    def predict_instance_video(self, api: Api, state: Mapping[str, Any]) -> dict[str, Any]:
        """Results for a video of the instance, frame by frame."""
        results = self.inference_requests_manager.run(self._inference_video_id, api, dict(state))
        return {"ann": results, "video_ann": None}

    def predict_frames(
        self, video: FrameSource, place: Mapping[str, Any], state: dict[str, Any], inference_request: Job
    ) -> None:
        """Predict the frames of a video that `state` asks for; results tell their indices and the video's `place`.

        Raises:
            RequestError: there are no such frames.
            TooLarge: more of them than a client may wait for.
        """
        frames = Frames(video, FrameChoice.of(state), inference_request.goes_on)
        if inference_request.is_waited_for:
            frames.require_at_most(self.limits.max_frames)
        inference_request.details = frames.details(place)
        self._inference_images(frames, state, inference_request)
        inference_request.final_result = {"video_ann": None}

    def start_speedtest(self, api: Api, state: Mapping[str, Any]) -> str:
        """Start a job that measures predictions of a project's images; its uuid."""
        request, _ = self.inference_requests_manager.schedule_task(self._run_speedtest, api, dict(state))
        return request.uuid

    def deploy(self, state: Mapping[str, Any]) -> None:
        """Deploy a checkpoint on request. If that fails, what was deployed stays.

        Raises:
            RequestError, CheckpointError: the request or the checkpoint is not right.
            Unavailable: another one is being deployed.
        """
        if not self._deploying.acquire(blocking=False):
            raise Unavailable("Another model is being deployed. Try again when it is ready.")
        before = {name: getattr(self, name) for name in _DESCRIPTION}
        try:
            wanted = state["deploy_params"]
            if wanted.get("model_source") == ModelSource.PRETRAINED:
                self._build_deploy_params_from_api(str(state.get("model_name")))
            params = completed(wanted)
            if not Path(params["model_files"]["checkpoint"]).is_file():
                params["model_files"] = self._download_model_files(params, self.gui is not None)
            params = self._set_common_deploy_params(params)
            self.checkpoint_info = None
            self._load_model_headless(**params)
            self._model_frozen = False
            if self.gui is not None:
                self.set_params_to_gui(params)
                self.gui.set_deployed(params["device"])
        except Exception:
            for name, value in before.items():
                setattr(self, name, value)
            raise
        finally:
            self._deploying.release()
            self._schedule_freeze_on_inactivity()

    def drain(self) -> None:
        """Let what is computed end, then stop the rest."""
        self.admission.close()
        if not self.admission.wait_until_empty(self.limits.drain_s):
            self.inference_requests_manager.stop_all()
        self.inference_requests_manager.close()

    def describe_model(self) -> dict[str, str]:
        """The deployed model for a monitor; empty without one."""
        raise NotImplementedError

    def probabilities(self, images: Sequence[np.ndarray], settings: dict[str, Any]) -> bytes:
        """All classes' probabilities of an image, as numpy's compressed archive."""
        raise NotImplementedError

    def api_from_request(self, request: Request) -> Api:
        """The instance, as the user whose token came with the request, or else as the app's own.

        Raises:
            RequestError: the app was started without an instance.
        """
        api = getattr(request.state, "api", None) or self.api
        if api is None:
            raise RequestError(
                "Ids belong to a Supervisely instance, and this service was started without one: set SERVER_ADDRESS "
                "and API_TOKEN in its environment, or send the images themselves."
            )
        return api

    @property
    def present(self) -> Served:
        """What a request that comes now, or this one that has begun, is predicted with."""
        return _BEGUN_WITH.get() or self._served

    def serve(self) -> None:
        """Set up the app's routes and, on the command line, answer requests until stopped."""
        super().serve()
        self.add_routes(self._app.get_server())
        use_assets(self._app.get_server())
        if self._is_cli_deploy:
            host, port = self._address
            drain_s = int(self.limits.drain_s) + 1
            # One line a request is written by the gate.
            uvicorn.run(
                self._app, host=host, port=port, ws="websockets", access_log=False, timeout_graceful_shutdown=drain_s
            )

    def add_routes(self, server: FastAPI) -> None:
        """Called once, when the SDK's routes are there and no request has come yet."""
        raise NotImplementedError

    def predict_local(self, source: str, output: str, settings: Mapping[str, Any], draw: bool) -> None:
        """Predict the image or folder `source` into the folder `output`."""
        raise NotImplementedError

    # Overrides of private names

    @property
    def _model_meta(self) -> ProjectMeta | None:
        return self.present.meta

    @_model_meta.setter
    def _model_meta(self, meta: ProjectMeta | None) -> None:
        self.present.meta = meta

    def _inference_image_ids(self, api: Api, state: dict[str, Any], inference_request: Job) -> None:
        ids = next(state[name] for name in IMAGE_IDS if state.get(name) is not None)
        ids = ids if isinstance(ids, list) else [ids]
        if len(set(ids)) < len(ids):
            raise RequestError("An image must not be named twice.")
        if state.get("upload_mode") is None and state.get("output_project_id") is None:
            infos = find_images(api, ids)
            inference_request.details = iter(infos)
            images = self.cache.images(api, ids, inference_request.goes_on)
            self._inference_images(images, state, inference_request)
        else:
            super()._inference_image_ids(api, state | {"batch_ids": ids}, inference_request)

    def _inference_project_id(self, api: Api, state: dict[str, Any], inference_request: InferenceRequest) -> None:
        project_id = state.get("projectId") or state.get("project_id")
        require_image_project(api, project_id)
        super()._inference_project_id(api, state | {"project_id": project_id}, inference_request)

    def _inference_video_id(self, api: Api, state: dict[str, Any], inference_request: Job) -> None:
        video_id = state.get("videoId") or state.get("video_id")
        with closing(InstanceVideo(api, video_id, self.limits, inference_request.is_stopped)) as video:
            self.predict_frames(video, video.place, state, inference_request)

    def _run_speedtest(self, api: Api, state: dict[str, Any], inference_request: InferenceRequest) -> None:
        require_image_project(api, state["projectId"])
        chosen = state.get("dataset_ids")
        found = api.dataset.get_list(state["projectId"], recursive=True)
        if not any(each.items_count for each in found if chosen is None or each.id in chosen):
            raise RequestError(f"Project {state['projectId']} has no images to measure with.")
        super()._run_speedtest(api, state, inference_request)

    def _unfreeze_model(self) -> None:
        with self._waking:
            super()._unfreeze_model()

    def _schedule_freeze_on_inactivity(self) -> None:
        with self._dozing:
            super()._schedule_freeze_on_inactivity()

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
        params = completed({"model_files": {"checkpoint": checkpoint_path}, "device": device, "runtime": runtime})
        if not Path(checkpoint_path).is_file():
            params["model_files"] = self._download_custom_model(params["model_files"], False)
        return params

    def _download_model_files(self, deploy_params: dict[str, Any], log_progress: bool = True) -> dict[str, str]:
        # In place: the SDK goes on with the dict that it passed.
        deploy_params.update(completed(deploy_params))
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
        super()._load_model_headless(**completed(deploy_params))

    def _build_deploy_params_from_api(self, model_name: str, deploy_params: dict[str, Any] | None = None) -> Any:
        raise RequestError(
            f"There are no pretrained HRDA models. Deploy the path of a checkpoint. Received: {received(model_name)}."
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

    def _create_label(self, dto: LabelledMask, classes_whitelist: list[str] | str | None = None) -> list[Label]:
        return dto.labels(None if classes_whitelist in (None, "all") else classes_whitelist)

    def _inference_auto(
        self, source: list[str | np.ndarray], settings: dict[str, Any]
    ) -> tuple[list[Annotation], list[dict[str, Any]]]:
        shared = [settings["rectangle"]] * len(source) if "rectangle" in settings else []
        for image, rectangle in zip(source, settings.get("rectangles") or shared, strict=False):
            if isinstance(image, np.ndarray):
                check_inside(rectangle, image)
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
