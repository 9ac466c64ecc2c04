"""Every address that the two apps answer, reviewed one by one: what is not in this table is not there.

The SDK opens addresses by itself, more with each release. A test compares the table with the running apps, and the
door answers 404 to the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

SERVE, TRAIN = "serve", "train"
BOTH = (SERVE, TRAIN)
JSON, FORM = "application/json", "multipart/form-data"
PAGE = "the page's script"
WEBSOCKET = "WEBSOCKET"
"""In place of a method."""


class Access(Enum):
    """Who is let in, besides what holds everywhere: a known host and no foreign origin."""

    OPEN = "everybody, without the token: says that the app runs and nothing else"
    CALLER = "programs and the page, with the token where one is set"
    CONTROL = "as CALLER, where control of the model is not switched off"
    OWN_PAGE = "as CALLER, and only a page of the app's own origin: the answer holds the token of the instance"
    CLOSED = "nobody"


@dataclass(frozen=True)
class Route:
    """A row of the table."""

    apps: tuple[str, ...]
    """Which apps have it."""
    method: str
    """Of HTTP, or WEBSOCKET. HEAD is answered wherever GET is."""
    path: str
    """Without the instance's prefix; `{name}` stands for one part, `{name:path}` for the rest."""
    needed_by: str
    """Who asks it."""
    effect: str
    """What it may do."""
    access: Access = Access.CALLER
    media: str = JSON
    """The only kind of body that it takes."""

    @property
    def name(self) -> str:
        """Its last part, by which it is counted and logged."""
        return self.path.rsplit("/", 1)[-1] or "page"

    @property
    def is_of_page(self) -> bool:
        """Whether the page asks it, and tells with each request what is chosen there."""
        return self.needed_by == PAGE

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The paths that it stands for."""
        parts = re.split(r"(\{[^}]+\})", self.path)
        # No part begins with a dot, so none leads out of its folder.
        return re.compile("".join(_part(part) if part.startswith("{") else re.escape(part) for part in parts))


def _part(placeholder: str) -> str:
    return ".*" if placeholder.endswith(":path}") else r"(?!\.)[\w.-]+"


def _health(method: str, path: str, effect: str) -> Route:
    return Route(BOTH, method, path, "the platform, monitors, containers", effect, Access.OPEN)


def _page(method: str, path: str, effect: str, apps: tuple[str, ...] = BOTH, **more: Access) -> Route:
    return Route(apps, method, path, PAGE, effect, **more)


def _widget(event: str, apps: tuple[str, ...] = BOTH) -> Route:
    return _page("POST", f"/{{widget}}/{event}", "what a click or a choice on the page does", apps)


def _closed(method: str, path: str, why: str, apps: tuple[str, ...] = BOTH) -> Route:
    return Route(apps, method, path, "nobody", why, Access.CLOSED)


def _serve(path: str, needed_by: str, effect: str, access: Access = Access.CALLER, media: str = JSON) -> Route:
    return Route((SERVE,), "POST", path, needed_by, effect, access, media)


_TOOLS, _SCRIPTS, _JOBS = "labelling tools, scripts", "scripts", "who started a job"

ROUTES: tuple[Route, ...] = (
    _health("GET", "/healthz", "says that the app runs"),
    _health("GET", "/livez", "says that the app runs"),
    _health("GET", "/is_alive", "says that the app runs"),
    _health("POST", "/is_running", "says that the app runs"),
    _health("GET", "/readyz", "says whether a model is deployed"),
    _health("GET", "/is_ready", "says whether a model is deployed"),
    _health("POST", "/is_ready", "says whether a model is deployed"),
    # The page
    _page("GET", "/", "the page"),
    _page("POST", "/sly/data", "reads what the page shows"),
    _page("POST", "/sly/state", "reads what is chosen on the page"),
    _page("POST", "/sly/session-info", "reads the instance's address and token", access=Access.OWN_PAGE),
    _page(WEBSOCKET, "/sly/ws", "is told of changes of the page"),
    _page(WEBSOCKET, "/sly/sly-app-ws", "as /sly/ws, in older releases of the page's script"),
    _page("GET", "/sly/css/app/widgets/{widget}/style.css", "a widget's style"),
    _page("GET", "/sly/css/app/widgets/{widget}/script.js", "a widget's script"),
    Route(BOTH, "GET", "/guide/{name}", "people", "a page of docs/"),
    _page("GET", "/previews/{iteration}/{name}", "a picture of a validation", (TRAIN,)),
    _page("GET", "/errors/{name}", "a validation photo with its errors", (TRAIN,)),
    _widget("value_changed"),
    _widget("button_clicked_cb"),
    _widget("update_data_cb"),
    _widget("value_changed_cb"),
    _widget("selection_changed_cb"),
    _widget("class_selected_cb", (TRAIN,)),
    _widget("model_changed", (TRAIN,)),
    Route(BOTH, "POST", "/sly/shutdown", "the platform", "ends the app", Access.CONTROL),
    # Train HRDA
    Route((TRAIN,), "POST", "/train_from_api", "scripts, the platform", "starts a training", Access.CONTROL),
    Route((TRAIN,), "POST", "/stop_training", "scripts", "ends the training, with upload", Access.CONTROL),
    Route((TRAIN,), "POST", "/train_status", "scripts, the platform", "says how far the training is"),
    # Serve HRDA: what is deployed
    _serve("/get_session_info", _TOOLS, "describes the session"),
    _serve("/get_output_classes_and_tags", _TOOLS, "names the model's classes"),
    _serve("/get_model_meta", _TOOLS, "as get_output_classes_and_tags"),
    _serve("/get_custom_inference_settings", _TOOLS, "gives the default settings"),
    _serve("/get_tracking_settings", _TOOLS, "gives the settings of tracking, of which there is none"),
    _serve("/get_deploy_info", _SCRIPTS, "describes the deployed model"),
    _serve("/get_deploy_settings", _SCRIPTS, "gives devices and runtimes to choose from"),
    _serve("/is_deployed", _SCRIPTS, "says whether a model is deployed"),
    _serve("/get_status", _SCRIPTS, "says how far a deployment is"),
    _serve("/list_pretrained_models", _SCRIPTS, "an empty list"),
    _serve("/list_pretrained_model_infos", _SCRIPTS, "an empty list"),
    _serve("/deploy_from_api", "scripts, the platform", "deploys a checkpoint of this machine or Team Files",
           Access.CONTROL),
    _serve("/freeze_model", "the platform", "takes the model out of memory until the next request", Access.CONTROL),
    Route((SERVE,), "GET", "/metrics", "monitors", "counts requests, images, memory"),
    # Serve HRDA: predictions
    _serve("/inference_image", _TOOLS, "predicts an uploaded image", media=FORM),
    _serve("/inference_batch", _SCRIPTS, "predicts uploaded images", media=FORM),
    _serve("/inference_batch_async", _SCRIPTS, "starts a job over uploaded images", media=FORM),
    _serve("/inference_video_async", _SCRIPTS, "starts a job over an uploaded video", media=FORM),
    _serve("/measure", _SCRIPTS, "measures what is found in an uploaded image", media=FORM),
    _serve("/predict_probabilities", _SCRIPTS, "predicts probabilities of an uploaded image", media=FORM),
    _serve("/try_photo", "the page to try a photo", "predicts an uploaded photo for that page", media=FORM),
    Route((SERVE,), "GET", "/try", "people", "the page to try a photo"),
    Route((SERVE,), "GET", "/docs", "people", "describes the addresses of the service"),
    Route((SERVE,), "GET", "/openapi.json", "programs", "describes the addresses of the service"),
    _serve("/inference_image_url", _SCRIPTS, "fetches an image from the internet and predicts it"),
    _serve("/inference_image_id", _TOOLS, "predicts an image of the instance"),
    _serve("/inference_image_id_async", _TOOLS, "starts a job over an image of the instance"),
    _serve("/inference_batch_ids", _TOOLS, "predicts images of the instance, and uploads labels where asked to"),
    _serve("/inference_batch_ids_async", _TOOLS, "starts a job over images of the instance, uploads where asked to"),
    _serve("/inference_project_id_async", _SCRIPTS, "starts a job over a project, uploads where asked to"),
    _serve("/inference_video_id", _TOOLS, "predicts frames of a video of the instance"),
    _serve("/inference_video_id_async", _TOOLS, "starts a job over frames of a video of the instance"),
    _serve("/run_speedtest", _SCRIPTS, "starts a job that measures the model on a project"),
    _serve("/smart_cache", _TOOLS, "fetches images of the instance ahead"),
    _serve("/tracking_by_detection", _TOOLS, "refuses: objects are not followed"),
    _serve("/get_inference_progress", _JOBS, "says how far a job is"),
    _serve("/get_inference_status", _JOBS, "says how far a job is"),
    _serve("/get_preparing_progress", _JOBS, "says how far a job's preparation is"),
    _serve("/get_inference_result", _JOBS, "gives a job's result"),
    _serve("/pop_inference_results", _JOBS, "gives a job's results and forgets them"),
    _serve("/stop_inference", _JOBS, "ends a job"),
    _serve("/clear_inference_request", _JOBS, "forgets a job"),
    # What the SDK opens and nobody needs
    _closed("POST", "/debug", "opens a debugger, which runs any code"),
    _closed("GET", "/sly/css/{path:path}", "serves the SDK's sources"),
    _closed("GET", "/sly/openapi.json", "describes the SDK's addresses"),
    _closed("GET", "/sly/docs", "a page that loads scripts from elsewhere"),
    _closed("GET", "/sly/docs/oauth2-redirect", "belongs to /sly/docs"),
    _closed("GET", "/sly/redoc", "a page that loads scripts from elsewhere"),
)  # fmt: skip


def routes_of(app: str) -> tuple[Route, ...]:
    """The rows of one app."""
    return tuple(route for route in ROUTES if app in route.apps)


def matching(routes: Sequence[Route], path: str) -> list[Route]:
    """The open rows that a path belongs to, in the table's order."""
    return [route for route in routes if route.access is not Access.CLOSED and route.pattern.fullmatch(path)]
