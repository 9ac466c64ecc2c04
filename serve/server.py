"""HRDA behind Supervisely's inference API."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import yaml
from fastapi import FastAPI
from supervisely import logger
from supervisely.app.fastapi.websocket import WebsocketManager
from supervisely.app.widgets import Container, Widget
from supervisely.nn.prediction_dto import PredictionSegmentation
from supervisely.nn.utils import CheckpointInfo, RuntimeType

from common.hrda.checks import received
from common.plain_yaml import read_yaml
from common.web.browsers import tell_each_alone
from serve.batch.local import predict_local
from serve.batch.outputs.format import IMAGE, PROBABILITIES, OutputOptions
from serve.batch.result import Photo, Result
from serve.batch.worker import WANTED, Worker
from serve.errors import RequestError
from serve.gate.admission import CURRENT
from serve.gate.gate import Gate
from serve.gate.rectangles import read_rectangle, region_of
from serve.gate.work import require_allowed, require_bounded, require_few_probabilities
from serve.jobs import Job, require_wanted
from serve.limits import Limits
from serve.model.areas import check_wanted
from serve.model.deployment import offered_runtimes
from serve.model.labels import LabelledMask
from serve.model.pool import deployed
from serve.model.settings import BEST, SDK_SETTINGS, ServeSettings, read_settings, said
from serve.page import ThresholdsCard, TryCard
from serve.pages import trying
from serve.routes import add_routes
from serve.sdk.server import SdkServer

_HERE = Path(__file__).parent
_THRESHOLDS = f"\nthresholds: {BEST}\n"
_MOST_NAMED = 10
UPLOADED = "image"
"""What files call an image of a request."""
Write = Callable[[Result, OutputOptions], bytes]


class HRDAServer(SdkServer):
    """The app: loads one checkpoint at a time and answers the SDK's inference routes.

    Args:
        host: address to listen on, when started from the command line.
        port: port to listen on, when started from the command line.
        limits: bounds of the service; those of the environment unless given.
        options: arguments of the SDK's `Inference`, e.g. `use_gui`.
    """

    FRAMEWORK_NAME = "HRDA"
    MODELS = str(_HERE / "models.json")
    APP_OPTIONS = str(_HERE / "app_options.yaml")
    DEFAULT_BATCH_SIZE = 4  # Images that are decoded at once; those of a photographer take hundreds of megabytes.
    INFERENCE_SETTINGS = str(_HERE / "inference_settings.yaml")

    def __init__(self, host: str = "127.0.0.1", port: int = 8000, limits: Limits | None = None, **options: Any) -> None:
        self.thresholds_card: ThresholdsCard | None = None
        self.try_card: TryCard | None = None
        super().__init__(host, port, limits or Limits.from_environment(), **options)
        tell_each_alone(WebsocketManager())
        if getattr(self.gui, "runtime_select", None) is not None:
            # The SDK offers what app_options.yaml lists, whatever is installed.
            self.gui.runtime_select.set(list(offered_runtimes()))

    def get_ui(self) -> Widget | None:
        """The SDK's cards, and ours."""
        cards = super().get_ui()
        if cards is None:
            return None
        if self.thresholds_card is None:
            self.thresholds_card = ThresholdsCard(lambda: self.gui.set_inference_settings(self))
            self.try_card = TryCard()
        return Container([cards, self.thresholds_card.card, self.try_card.card])

    def load_model(
        self,
        model_files: dict[str, str],
        model_info: dict[str, Any],
        model_source: str,
        device: str,
        runtime: str = RuntimeType.PYTORCH,
    ) -> None:
        """Deploy a checkpoint, in place of what was deployed before. Requests under way finish on the old model.

        :param model_files: paths of local files; 'checkpoint' is the only one that is read, for the runtimes
            ONNXRuntime and TensorRT an exported network
        :type model_files: dict
        :param model_info: the experiment's description, not needed: the checkpoint holds its own
        :type model_info: dict
        :param model_source: where the model comes from, in the SDK's words
        :type model_source: str
        :param device: 'cpu' or 'cuda:N', or several with commas between
        :type device: str
        :param runtime: 'PyTorch', 'ONNXRuntime' or 'TensorRT'
        :type runtime: str
        """
        deployment = deployed(model_files["checkpoint"], device, runtime)
        self.deployment = deployment
        best = self.best_thresholds
        if best:
            logger.info(
                f"Thresholds that were best in the model's validation, used unless told otherwise: {said(best)}"
            )
        if (origin := deployment.weights_origin) is not None:
            logger.info(f"The encoder started from: {origin.source}. Licence of these weights: {origin.licence}.")
        if self.thresholds_card is not None:
            self.thresholds_card.show(best)
            self.try_card.show(deployment.name)
        if self.checkpoint_info is None:
            self.checkpoint_info = CheckpointInfo(
                checkpoint_name=deployment.name,
                model_name=deployment.encoder,
                architecture=self.FRAMEWORK_NAME,
                custom_checkpoint_path=model_files["checkpoint"],
                model_source=model_source,
            )

    def shutdown_model(self) -> None:
        """Give the model's memory back; the app waits for the next one."""
        self.deployment = None
        super().shutdown_model()

    def predict_benchmark(
        self, images_np: list[np.ndarray], settings: dict[str, Any]
    ) -> tuple[list[list[PredictionSegmentation]], dict[str, float]]:
        """Predict images as one mask each.

        Args:
            images_np: H×W×3 uint8 RGB, sizes may differ.
            settings: the request's settings with the defaults filled in.

        Returns:
            For each image a list of one mask of class indices, and milliseconds: `preprocess` (settings),
            `inference` (scaling, windows, network, labels at the image's size) and `postprocess`. The masks know
            whether the background is wanted and how sure the model is of each class.
        """
        times = [perf_counter()]
        deployment = self.require_deployment()
        chosen = read_settings(settings)
        times.append(perf_counter())
        for image in images_np:
            require_bounded([image.shape[:2]], chosen, deployment, self.limits)
        with self.pulse.working():
            found = deployment.predict(images_np, chosen, self.pulse.after(require_wanted))
        self.count(images_np)
        times.append(perf_counter())
        predictions = [
            [
                LabelledMask(
                    one.labels,
                    deployment.classes,
                    deployment.palette,
                    confidences=one.confidences,
                    background=chosen.background,
                )
            ]
            for one in found
        ]
        times.append(perf_counter())
        steps = zip(("preprocess", "inference", "postprocess"), itertools.pairwise(times), strict=True)
        return predictions, {step: 1000 * (end - start) for step, (start, end) in steps}

    def written(
        self, images: Sequence[np.ndarray], state: Mapping[str, Any], needs: Collection[str], write: Write
    ) -> bytes:
        """What is found in an image, as a file.

        Args:
            images: one image, H×W×3 uint8 RGB, which is read when its turn has come.
            state: of the request.
            needs: fields of `Result` that `write` needs.
            write: makes the file. Without a `rectangle` the result is of the whole image; with one all beside it is
                background, and probabilities are of the rectangle alone.

        Raises:
            RequestError: no model is deployed.
            TimedOut: it takes longer than the service lets a client wait.
        """

        def finish(result: Result, worker: Worker, milliseconds: float) -> bytes:
            given = {name: state[name] for name in ("tolerance", "mm_per_pixel") if state.get(name) is not None}
            return write(result, worker.options(**given))

        return self._of_one(images, state, needs, finish)

    def try_photo(self, images: Sequence[np.ndarray]) -> dict[str, Any]:
        """What the page to try a photo gets, see `serve.pages.trying.shown`.

        Args:
            images: one image, H×W×3 uint8 RGB, which is read when its turn has come.

        Raises:
            As `written`.
        """

        def show(result: Result, worker: Worker, milliseconds: float) -> dict[str, Any]:
            best = self.best_thresholds if self.uses_best else {}
            return trying.shown(result.image, result.probabilities, worker.deployment, best, milliseconds)

        return self._of_one(images, {}, {IMAGE, PROBABILITIES}, show)

    def _of_one(
        self, images: Sequence[np.ndarray], state: Mapping[str, Any], needs: Collection[str], finish: Callable[..., Any]
    ) -> Any:
        """What `finish` makes of the result, the worker and the milliseconds, in the turn of this request."""

        def work(inference_request: Job) -> None:
            deployment, settings = self.require_deployment(), self.complete_settings(state)
            own = {name: value for name, value in settings.items() if name == WANTED or name not in SDK_SETTINGS}
            worker, image = Worker(deployment, own), images[0]
            region = region_of(settings, image)
            part = np.ascontiguousarray(image[region])
            require_bounded([part.shape[:2]], worker.settings, deployment, self.limits)
            if PROBABILITIES in needs:
                require_few_probabilities(part.shape[:2], deployment)
            begun = perf_counter()
            with self.pulse.working():
                asked = self.pulse.after(require_wanted)
                [result] = worker.results([Photo(UPLOADED, UPLOADED, part)], needs, asked)
            milliseconds = 1000 * (perf_counter() - begun)
            self.count([part])
            made = finish(result.placed(image.shape[:2], region), worker, milliseconds)
            inference_request.add_results([{"made": made}])

        [result] = self.inference_requests_manager.run(work)
        return result["made"]

    def count(self, images: Sequence[np.ndarray]) -> None:
        """Note predicted images for the monitor and for the log line of the request that waits for them."""
        megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
        self.metrics.images.inc(len(images))
        self.metrics.megapixels.inc(megapixels)
        if (call := CURRENT.get()) is not None:
            call.megapixels += megapixels

    def describe_model(self) -> dict[str, str]:
        """The deployed model for a monitor; empty without one."""
        deployment = self.deployment
        if deployment is None:
            return {}
        return {"checkpoint": deployment.name, "encoder": deployment.encoder, "device": str(deployment.device)}

    @property
    def custom_inference_settings(self) -> str:
        """The default settings as commented YAML, with the thresholds of the deployed model, for a person to edit."""
        text = super().custom_inference_settings
        best = self.best_thresholds
        if not best:
            return text
        one_line = yaml.safe_dump(best, default_flow_style=True, width=math.inf, sort_keys=False).strip()
        filled = f"{one_line} # best in validation; {{}}: as at 0.5" if self.uses_best else "{}"
        return text.replace(_THRESHOLDS, f"\nthresholds: {filled}\n")

    @property
    def custom_inference_settings_dict(self) -> dict[str, Any]:
        """The same as plain data, which the SDK fills requests with."""
        return read_yaml(self.custom_inference_settings)

    @property
    def best_thresholds(self) -> dict[str, float]:
        """Those of the deployed model by class name; empty where none were measured."""
        deployment = self.deployment
        if deployment is None:
            return {}
        return ServeSettings().chosen_thresholds(deployment.classes, deployment.best_thresholds)

    @property
    def uses_best(self) -> bool:
        """Whether they count where a request does not say its thresholds; the page can switch them off."""
        return self.thresholds_card is None or self.thresholds_card.uses_best

    def get_info(self) -> dict[str, Any]:
        """What labelling tools and scripts show about this session."""
        deployment = self.require_deployment()
        return super().get_info() | {
            "model_name": f"HRDA {deployment.encoder}",
            "checkpoint_name": deployment.name,
            "encoder_weights": None if deployment.weights_origin is None else deployment.weights_origin.to_dict(),
            "device": str(deployment.device),
            "self_check": deployment.self_check,
            "thresholds": said(self.best_thresholds if self.uses_best else {}) or "the most probable class",
            "max_batch_size": self.limits.max_batch_size,
            "tracking_algorithms": [],
        }

    def validate_inference_state(self, state: dict[str, Any] | str, log_error: bool = True) -> None:
        """Refuse a bad request before it is queued.

        Raises:
            SettingsError: unknown setting or class, or a bad value.
            RequestError: malformed rectangle, or settings that are not names and values.
        """
        super().validate_inference_state(state, log_error)
        given = json.loads(state) if isinstance(state, str) else state
        settings, passed_over = self.settings_of(given)
        self.note_passed_over(passed_over)
        chosen = read_settings(settings)
        require_allowed(chosen, self.limits)
        if self.deployment is not None:
            chosen.complete(self.deployment.crop_size)
            chosen.rule(self.deployment.classes)
            check_wanted(settings.get("classes"), self.deployment.classes)
        several = settings.get("rectangles")
        if not isinstance(several, list | None):
            raise RequestError(
                f"rectangles must be a list with a rectangle for each image. Received: {received(several)}."
            )
        for rectangle in (given.get("rectangle"), settings.get("rectangle")):
            if rectangle is not None:
                read_rectangle(rectangle)
        for rectangle in several or []:
            read_rectangle(rectangle)

    def note_passed_over(self, names: Sequence[str]) -> None:
        """Tell the log, and the answer of the present request, which of its settings are not of this model."""
        call = CURRENT.get()
        if names and call is not None:
            call.note = f"This model does not have and passes over: {', '.join(names[:_MOST_NAMED])}."
            logger.warning(call.note, extra={"request_id": call.id})

    def add_routes(self, server: FastAPI) -> Gate:
        """Our routes, in place of those of the SDK that would answer wrongly; what stands around all of them."""
        return add_routes(self, server)

    def predict_local(self, source: str, output: str, settings: dict[str, Any], draw: bool) -> None:
        """`python -m serve predict SOURCE`: an image or a folder of images, without an instance."""
        predict_local(Worker(self.require_deployment(), settings), Path(source), Path(output), draw=draw)
