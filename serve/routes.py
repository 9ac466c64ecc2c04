"""Routes of ours, in place of routes of the SDK that would answer wrongly or let too much in.

The SDK keeps uploaded files by the name that the client gave them, and its own clients name every batch
'image_0.png', 'image_1.png' …: two clients at once would get each other's predictions, and a name with '..'
would leave the folder. Here a request's images stay with the request. They are decoded as in training. Its route for
URLs fails at every URL, and would fetch from anywhere.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import supervisely.io.env as sly_env
from fastapi import BackgroundTasks, FastAPI, Form, Request, Response, UploadFile
from fastapi.responses import HTMLResponse
from supervisely import is_production
from supervisely.app import StateJson

from common.web.answers import answer_all_errors
from common.web.bodies import read_object
from common.web.door import Door
from common.web.guide import add_guide
from common.web.health import add_liveness, add_readiness
from common.web.routes import JSON, SERVE, routes_of
from serve.answers import answer_error
from serve.batch.outputs.format import CONFIDENCES, PROBABILITIES, OutputOptions, json_bytes
from serve.batch.outputs.geojson import feature_collection
from serve.batch.outputs.images import index_png, probabilities_npz
from serve.batch.outputs.measures import measure
from serve.batch.result import Result
from serve.errors import RequestError
from serve.gate.bodies import SUPERVISELY, check_state
from serve.gate.gate import Gate
from serve.gate.monitoring import CONTENT_TYPE
from serve.pages import trying
from serve.pages.documentation import docs_page, openapi, short_page
from serve.sdk.server import SdkServer
from serve.sources import urls
from serve.sources.uploads import UploadedImages
from serve.sources.videos import keep_video

_REPLACED = {
    "/deploy_from_api",
    "/inference_batch",
    "/inference_batch_async",
    "/inference_image",
    "/inference_image_url",
    "/inference_video_async",
    "/inference_video_id",
    "/list_pretrained_model_infos",
    "/list_pretrained_models",
    "/run_speedtest",
    "/tracking_by_detection",
}
_STARTED = {"message": "Scheduled inference task."}


def add_routes(app: SdkServer, server: FastAPI) -> Gate:
    """Replace routes, and answer errors with a sentence; the gate that stands around everything."""
    server.router.routes[:] = [
        route for route in server.router.routes if _last_part(getattr(route, "path", "")) not in _REPLACED
    ]
    _add_uploads(app, server)
    _add_by_reference(app, server)
    _add_models(app, server)
    _add_metrics(app, server)
    add_guide(server)
    _add_pages(app, server)
    add_liveness(server, "production" if is_production() else "development", app.pulse.trouble)
    add_readiness(server, app.missing)
    answer_all_errors(server, answer_error, lambda error: app.metrics.errors.labels(type(error).__name__).inc())
    door = Door(routes_of(SERVE), app.limits)
    return Gate(server, app.limits, app.admission, app.metrics, door, app.drain, StateJson)


def _add_uploads(app: SdkServer, server: FastAPI) -> None:
    def read_state(route: str, state: str, settings: str) -> dict[str, Any]:
        """The request's state: clients send it as form field `state`, older ones as `settings`."""
        text = state if state and state != "{}" else settings or "{}"
        given = read_object(text, "state", '{"settings": {…}}')
        check_state(route, given, app.limits)
        app.validate_inference_state(given)
        return given

    @server.post("/inference_image")
    def inference_image(files: list[UploadFile], settings: str = Form("{}"), state: str = Form("{}")) -> Any:
        request = read_state("inference_image", state, settings)
        _one(files)
        return _about_one(app, UploadedImages.read(files, app.limits), request)

    @server.post("/predict_probabilities")
    def predict_probabilities(files: list[UploadFile], state: str = Form("{}")) -> Response:
        """For scripts: all classes' probabilities of one image, as numpy's compressed archive."""
        request = read_state("predict_probabilities", state, "{}")
        _one(files)
        content = app.written(UploadedImages.read(files, app.limits), request, {PROBABILITIES}, _probabilities)
        return Response(content, media_type="application/octet-stream")

    @server.post("/measure")
    def measure(files: list[UploadFile], state: str = Form("{}")) -> Response:
        """For scripts: the measures of one image, the rows of the tables csv and parquet."""
        request = read_state("measure", state, "{}")
        _one(files)
        content = app.written(UploadedImages.read(files, app.limits), request, {CONFIDENCES}, _measures)
        return Response(content, media_type=JSON)

    @server.post("/inference_batch")
    def inference_batch(
        files: list[UploadFile], settings: str = Form("{}"), state: str = Form("{}")
    ) -> list[dict[str, Any]]:
        request = read_state("inference_batch", state, settings)
        return app.predict_now(UploadedImages.read(files, app.limits), request)

    @server.post("/inference_batch_async")
    def inference_batch_async(
        files: list[UploadFile], settings: str = Form("{}"), state: str = Form("{}")
    ) -> dict[str, str]:
        request = read_state("inference_batch_async", state, settings)
        uuid = app.predict_later(UploadedImages.read(files, app.limits), request)
        return _STARTED | {"inference_request_uuid": uuid}

    @server.post("/inference_video_async")
    def inference_video_async(
        files: list[UploadFile], settings: str = Form("{}"), state: str = Form("{}")
    ) -> dict[str, str]:
        request = read_state("inference_video_async", state, settings)
        _one(files)
        uuid = app.predict_video_later(keep_video(files[0], request, app.limits), request)
        return _STARTED | {"inference_request_uuid": uuid}


def _add_by_reference(app: SdkServer, server: FastAPI) -> None:
    @server.post("/inference_image_url")
    def inference_image_url(request: Request) -> Any:
        state = request.state.state
        app.validate_inference_state(state)
        url = state["image_url"]
        return _about_one(app, UploadedImages([(url, urls.fetch(url, app.limits))], app.limits), state)

    @server.post("/inference_video_id")
    def inference_video_id(request: Request) -> dict[str, Any]:
        state = request.state.state
        app.validate_inference_state(state)
        return app.predict_instance_video(app.api_from_request(request), state)

    @server.post("/run_speedtest")
    def run_speedtest(request: Request) -> dict[str, str]:
        state = request.state.state
        app.validate_inference_state(state)
        return _STARTED | {"inference_request_uuid": app.start_speedtest(app.api_from_request(request), state)}

    @server.post("/tracking_by_detection")
    def tracking_by_detection() -> None:
        raise RequestError("This model finds areas, it does not follow objects through a video.")

    @server.post("/smart_cache")
    def smart_cache(request: Request, later: BackgroundTasks) -> dict[str, str]:
        """A labelling tool tells which images it will ask for."""
        ids = request.state.state.get("image_ids") or []
        later.add_task(app.cache.prefetch, app.api_from_request(request), ids)
        return {"message": "Cache task started."}


def _add_models(app: SdkServer, server: FastAPI) -> None:
    @server.post("/deploy_from_api")
    def deploy_from_api(request: Request) -> dict[str, str]:
        app.deploy(request.state.state)
        return {"result": "model was successfully deployed"}

    @server.post("/list_pretrained_models")
    @server.post("/list_pretrained_model_infos")
    def list_pretrained_models() -> list[Any]:
        """There are none; the SDK looks into the page's table of them, which is not there either."""
        return []


def _add_metrics(app: SdkServer, server: FastAPI) -> None:
    @server.get("/metrics")
    def metrics() -> Response:
        return Response(app.metrics.text(), media_type=CONTENT_TYPE)


def _add_pages(app: SdkServer, server: FastAPI) -> None:
    own = routes_of(SERVE)

    @server.get("/try")
    def try_page() -> HTMLResponse:
        """The page is one file: script, style and all."""
        task = sly_env.task_id(raise_not_found=False)
        return HTMLResponse(trying.PAGE.read_text(encoding="utf-8").replace("{{task}}", str(task or "")))

    @server.post("/try_photo")
    def try_photo(files: list[UploadFile]) -> dict[str, Any]:
        _one(files)
        return app.try_photo(UploadedImages.read(files, app.limits))

    @server.get("/docs")
    def docs(request: Request) -> HTMLResponse:
        address = str(request.url).rpartition("/")[0]
        return HTMLResponse(docs_page(own, address))

    @server.get("/openapi.json")
    def openapi_json() -> dict[str, Any]:
        return openapi(own)

    if app.has_page:
        return

    @server.get("/")
    def root() -> HTMLResponse:
        """A service without the SDK's page still says what it is."""
        model = app.describe_model()
        said = f"{model['checkpoint']} ({model['encoder']}) on {model['device']}." if model else "No model is deployed."
        return HTMLResponse(short_page(said))


def _about_one(app: SdkServer, images: UploadedImages, state: dict[str, Any]) -> Any:
    """The answer about an image: in Supervisely's form, or a file of the format that `state` names."""
    name = state.get("format") or SUPERVISELY
    if name == SUPERVISELY:
        return app.predict_now(images, state)[0]
    needs, write, media = _WRITTEN[name]
    return Response(app.written(images, state, needs, write), media_type=media)


def _mask(result: Result, options: OutputOptions) -> bytes:
    return index_png(result.labels, result.legend)


def _outlines(result: Result, options: OutputOptions) -> bytes:
    return json_bytes(feature_collection(result, options))


def _measures(result: Result, options: OutputOptions) -> bytes:
    return json_bytes(asdict(measure(result, options)))


def _probabilities(result: Result, options: OutputOptions) -> bytes:
    return probabilities_npz(result.probabilities, result.legend.classes)


_WRITTEN = {
    "masks": (frozenset(), _mask, "image/png"),
    "geojson": (frozenset({CONFIDENCES}), _outlines, "application/geo+json"),
}
"""By format: the fields of `Result` that it needs, what writes it, and its media type."""


def _one(files: list[UploadFile]) -> None:
    if len(files) != 1:
        raise RequestError(f"Exactly one file is expected. Received: {len(files)}.")


def _last_part(path: str) -> str:
    """The route's own name: an instance may put a prefix before all of them."""
    return f"/{path.rsplit('/', 1)[-1]}"
