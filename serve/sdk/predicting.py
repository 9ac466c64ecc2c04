"""How the SDK's server predicts what requests name, and how it answers.

Private names that are overridden, and why:

- `_format_output`: the SDK's own clients and command line still read `image_name`, which it calls `name` now.
- `_get_inference_settings`: a client's settings are checked before the SDK adds the defaults.
- `_create_label`: the SDK makes a label of the background in any case and has no place for confidences.
- `_inference_images`: what is too much is refused before it begins, and it is asked before each image whether it is
  still wanted.
- `_inference_auto`: a `rectangle` that does not fit the image is told in a sentence; of `rectangles` every batch gets
  its own; an image that cannot be read costs no other image its prediction; who asks for sliding windows gets one.
- `_inference_benchmark`: it costs a measurement of speed everything.
- `_inference_image_ids`: waits for its own threads for a second at every request, where no labels are uploaded.
- `_inference_video_id`: see `serve.sources.videos` for what the SDK does to videos.
- `_inference_project_id`, `_run_speedtest`: what is not there is told in a sentence, before the SDK fails at it (or,
  at a project without images, never ends).
- `_inference_by_cli_deploy_args`: local images are read one by one, with their EXIF orientation.

Private names that are read: `_args`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from time import perf_counter
from typing import Any

import numpy as np
from supervisely import Annotation, Api, Label, Rectangle
from supervisely.nn.inference.inference_request import InferenceRequest
from supervisely.nn.model.prediction import Prediction

from common.hrda.checks import received
from serve.errors import RequestError
from serve.gate.admission import CURRENT
from serve.gate.bodies import IMAGE_IDS
from serve.gate.rectangles import check_inside, refuse_for_each, region_size, require_for_each
from serve.gate.work import require_bounded
from serve.jobs import UNREADABLE, Job, Jobs
from serve.limits import Limits
from serve.model.labels import LabelledMask
from serve.model.settings import read_settings, with_thresholds, without_client_arguments, without_foreign
from serve.sdk.deploying import DeployingServer
from serve.sources.instance_images import InstanceImages, find_images, require_datasets, require_image_project
from serve.sources.uploads import Images, UploadedImages, WantedImages
from serve.sources.videos import FrameChoice, Frames, FrameSource, InstanceVideo, UploadedVideo

NOTHING = Annotation((1, 1))
"""Stands for an image that could not be read, until its job has noted it."""


def _is_for_evaluation(state: Mapping[str, Any]) -> bool:
    """Whether predictions go into a project of their own, as the SDK's evaluators ask: they need the background there,
    and name only the classes that the truth has too."""
    return state.get("output_project_id") is not None and state.get("upload_mode") is None


def _said_areas(annotation: Annotation) -> str:
    """What was found in an image, such as 'crack 1.23%'."""
    height, width = annotation.img_size
    shares = [
        f"{label.obj_class.name} {label.geometry.area / (height * width):.2%}"
        for label in annotation.labels
        if label.obj_class.name != "__bg__"
    ]
    return ", ".join(shares) or "nothing found"


def _only_slide(annotation: Annotation) -> dict[str, Any]:
    """The whole image as a window of the SDK's sliding: clients offer it whatever the model says, and show its windows.
    The model's own windows are not whole results."""
    labels = [label.to_json() for label in annotation.labels]
    return {"rectangle": Rectangle.from_size(annotation.img_size).to_json(), "labels": labels}


class PredictingServer(DeployingServer):
    """The SDK's server as far as it predicts."""

    limits: Limits
    cache: InstanceImages
    inference_requests_manager: Jobs

    def predict_now(self, images: UploadedImages, state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Results for `images`, in the form that the SDK's clients expect."""
        return self.inference_requests_manager.run(self._inference_images, images, dict(state))

    def predict_later(self, images: UploadedImages, state: Mapping[str, Any]) -> str:
        """Start a job over `images`; its uuid, by which the SDK's routes give progress and results.

        Raises:
            RequestError: what `require_feasible` refuses.
        """
        if self.deployment is not None:
            self.require_feasible(images.sizes, self._get_inference_settings(dict(state)), together=False)
        job, _ = self.inference_requests_manager.schedule_task(self._inference_images, images, dict(state))
        return job.uuid

    def predict_video_later(self, video: UploadedVideo, state: Mapping[str, Any]) -> str:
        """Start a job over frames of an uploaded video, which is removed at its end; the job's uuid."""
        job, future = self.inference_requests_manager.schedule_task(self.predict_frames, video, {}, dict(state))
        future.add_done_callback(lambda _: video.close())
        return job.uuid

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
        most = self.limits.max_frames if inference_request.is_waited_for else None
        choice = FrameChoice.of(state)
        with suppress(RequestError):
            # Clients take the length of the job from its first report, which is due before the frames are counted.
            said = len(choice.indices(video.frames_said, video.name))
            inference_request.set_stage(inference_request.Stage.INFERENCE, 0, said)
        frames = Frames(video, choice, inference_request.goes_on, most)
        inference_request.details = frames.details(place)
        self._inference_images(frames, state, inference_request)
        inference_request.final_result = {"video_ann": None}

    def start_speedtest(self, api: Api, state: Mapping[str, Any]) -> str:
        """Start a job that measures predictions of a project's images; its uuid."""
        request, _ = self.inference_requests_manager.schedule_task(self._run_speedtest, api, dict(state))
        return request.uuid

    def upload_predictions(
        self,
        predictions: list[Prediction],
        *args: Any,
        progress_cb: Callable[[int], None] | None = None,
        inference_request: Job | None = None,
        **kwargs: Any,
    ) -> None:
        """Upload labels to the instance; images that could not be read keep those that they have."""
        read = [each for each in predictions if UNREADABLE not in each.extra_data["slides_data"]]
        unread = [each for each in predictions if each not in read]
        if read:
            super().upload_predictions(
                read, *args, progress_cb=progress_cb, inference_request=inference_request, **kwargs
            )
        if unread and inference_request is not None:
            self.add_results_to_request(unread, inference_request, progress_cb)

    def settings_of(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The settings of a request in our words, and what in them is of other models and is passed over.

        Raises:
            RequestError: they are not names and values.
            SettingsError: a value that cannot be.
        """
        given = {} if state.get("settings") is None else state["settings"]
        if not isinstance(given, dict):
            raise RequestError(f"settings must be names and values. Received: {received(given)}.")
        settings = with_thresholds(without_client_arguments(given, state))
        deployment, call = self.deployment, CURRENT.get()
        if deployment is None or call is None or not call.is_of_tool:
            return settings, []
        return without_foreign(settings, deployment.classes)

    def require_feasible(
        self, sizes: Sequence[tuple[int, int]], settings: Mapping[str, Any], *, together: bool
    ) -> None:
        """Refuse a request before it begins: lists by image of another length, or more work than one may ask for.

        Args:
            sizes: (H, W) of each image, (0, 0) where it is not known.
            settings: of the request, defaults included.
            together: whether a client waits for all of them at once; in a job each image is looked at by itself.

        Raises:
            RequestError, TooLarge: it says what and how much.
        """
        require_for_each(settings, len(sizes))
        known = [region_size(settings, index, size) for index, size in enumerate(sizes) if 0 not in size]
        chosen, deployment = read_settings(settings), self.require_deployment()
        for group in [known] if together else [[size] for size in set(known)]:
            require_bounded(group, chosen, deployment, self.limits)

    def complete_settings(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a request with the defaults filled in."""
        return self._get_inference_settings(dict(state))

    def predict_local(self, source: str, output: str, settings: Mapping[str, Any], draw: bool) -> None:
        """Predict the image or folder `source` into the folder `output`."""
        raise NotImplementedError

    # Overrides of private names

    def _inference_images(self, images: Images, state: dict[str, Any], inference_request: Job) -> None:
        settings = self._get_inference_settings(dict(state))
        self.require_feasible(images.sizes, settings, together=inference_request.is_waited_for)
        super()._inference_images(WantedImages(images, inference_request.goes_on), state, inference_request)

    def _inference_image_ids(self, api: Api, state: dict[str, Any], inference_request: Job) -> None:
        ids = next(state[name] for name in IMAGE_IDS if state.get(name) is not None)
        ids = ids if isinstance(ids, list) else [ids]
        if len(set(ids)) < len(ids):
            raise RequestError("An image must not be named twice.")
        if state.get("upload_mode") is None and state.get("output_project_id") is None:
            infos, sizes = find_images(api, ids)
            inference_request.details = iter([info | {"size": size} for info, size in zip(infos, sizes, strict=True)])
            images = self.cache.images(api, ids, sizes)
            self._inference_images(images, state, inference_request)
        else:
            require_for_each(state.get("settings") or {}, len(ids))
            super()._inference_image_ids(api, state | {"batch_ids": ids}, inference_request)

    def _inference_project_id(self, api: Api, state: dict[str, Any], inference_request: InferenceRequest) -> None:
        project_id = state.get("projectId") or state.get("project_id")
        require_image_project(api, project_id)
        refuse_for_each(state.get("settings") or {})
        require_datasets(api, project_id, state.get("dataset_ids") or state.get("datasetIds"))
        super()._inference_project_id(api, state | {"project_id": project_id}, inference_request)

    def _inference_video_id(self, api: Api, state: dict[str, Any], inference_request: Job) -> None:
        video_id = state.get("videoId") or state.get("video_id")
        with closing(InstanceVideo(api, video_id, self.limits, inference_request.is_stopped)) as video:
            self.predict_frames(video, video.place, state, inference_request)

    def _run_speedtest(self, api: Api, state: dict[str, Any], inference_request: InferenceRequest) -> None:
        require_image_project(api, state["projectId"])
        refuse_for_each(state.get("settings") or {})
        chosen = state.get("dataset_ids")
        require_datasets(api, state["projectId"], chosen)
        found = api.dataset.get_list(state["projectId"], recursive=True)
        if not any(each.items_count for each in found if chosen is None or each.id in chosen):
            raise RequestError(f"Project {state['projectId']} has no images to measure with.")
        super()._run_speedtest(api, state, inference_request)

    def _get_inference_settings(self, state: dict[str, Any]) -> dict[str, Any]:
        settings, _ = self.settings_of(state)
        wanted = settings.get("classes")
        if isinstance(wanted, list) and _is_for_evaluation(state):
            settings["classes"] = [*wanted, *self.require_deployment().classes[:1]]
        given = {**state, "settings": settings}
        for place in (given, settings):
            for name in ("rectangle", "rectangles"):
                if place.get(name, ...) is None:
                    del place[name]
        return super()._get_inference_settings(given)

    def _format_output(self, predictions: list[Prediction]) -> list[dict[str, Any]]:
        results = [result | {"image_name": result["name"]} for result in super()._format_output(predictions)]
        if getattr(getattr(self, "_args", None), "mode", None) == "predict":
            for prediction, result in zip(predictions, results, strict=True):
                print(f"{result['name']}: {_said_areas(prediction.annotation)}", flush=True)
        return results

    def _create_label(self, dto: LabelledMask, classes_whitelist: list[str] | str | None = None) -> list[Label]:
        return dto.labels(None if classes_whitelist in (None, "all") else classes_whitelist)

    def _inference_auto(
        self, source: list[str | np.ndarray], settings: dict[str, Any]
    ) -> tuple[list[Annotation], list[dict[str, Any]]]:
        listed, own = settings.get("rectangles"), dict(settings)
        if listed is not None:
            own["rectangles"] = listed[: len(source)]
        shared = [settings["rectangle"]] * len(source) if "rectangle" in settings else []
        for image, rectangle in zip(source, own.get("rectangles") or shared, strict=False):
            if isinstance(image, np.ndarray):
                check_inside(rectangle, image)
        unread = [image for image in source if isinstance(image, Exception)]
        if unread and read_settings(settings).strict:
            raise unread[0]
        read = [not isinstance(image, Exception) for image in source]
        images = list(itertools.compress(source, read))
        if listed is not None:
            own["rectangles"] = list(itertools.compress(own["rectangles"], read))
            # The SDK gives every batch the settings of the whole request, and would take the first ones each time.
            settings["rectangles"] = listed[len(source) :]
        annotations, data = super()._inference_auto(images, own) if images else ([], [])
        if own.get("inference_mode") == "sliding_window":
            data = [each | {"slides": [_only_slide(one)]} for one, each in zip(annotations, data, strict=True)]
        found = iter(zip(annotations, data, strict=True))
        both = [(NOTHING, {UNREADABLE: image}) if isinstance(image, Exception) else next(found) for image in source]
        return [annotation for annotation, _ in both], [each for _, each in both]

    def _inference_benchmark(self, images_np: list[np.ndarray], settings: dict[str, Any]) -> tuple[Any, Any]:
        for image in images_np:
            if isinstance(image, Exception):
                raise image
        return super()._inference_benchmark(images_np, settings)

    def _inference_by_cli_deploy_args(self) -> None:
        args = self._args
        if args.project_id is None and args.dataset_id is None and args.image_id is None:
            self.predict_local(args.input, args.output, args.settings or {}, args.draw)
            return
        begun = perf_counter()
        super()._inference_by_cli_deploy_args()
        place = "Uploaded to the instance" if args.upload else f"Written: {args.output}"
        print(f"Predicted in {perf_counter() - begun:.1f} s. {place}", flush=True)
