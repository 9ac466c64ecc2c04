"""How a model gets into the SDK's server, and out of it.

Private names that are overridden, and why:

- `_extract_model_files_from_checkpoint`, `_get_custom_model_params_from_args`,
  `_get_deploy_parameters_from_custom_checkpoint`: the SDK falls back to unpickling whatever the file holds.
  Checkpoints come from users: they are only ever read by `common.hrda.load_checkpoint`.
- `_download_custom_model`: nothing but the checkpoint is fetched, if it is not on this machine; it holds its own
  settings, and the former app's config.py is a program.
- `_build_deploy_params_from_api`: there are no pretrained models to look up; said in a sentence.
- `_download_model_files`, `_load_model_headless`: requests to deploy that lack optional parts are completed; for other
  runtimes a checkpoint is exported before the SDK does it, which would remove what lies beside it.
- `_get_deploy_params_from_args`: the SDK's arguments know one device.
- `_set_model_meta_custom_model`: classes and colours come from the checkpoint, not from a file beside it.
- `_check_serve_before_call`: that no model is deployed is told in a sentence; the SDK's error looks like a fault of
  the service, which its clients ask again for five minutes.
- `_unfreeze_model`: requests that come while the model wakes wait for it.
- `_schedule_freeze_on_inactivity`: of two requests at once one would leave a thread behind for an hour.
- `_model_meta`: requests keep the classes of the model that they began with.
- `_reset_gui_state`: the SDK falls back to the tab of pretrained models, which is switched off here.

Private names that are read or set: `_args`, `_model_frozen`, `_model_served`, `_set_common_deploy_params`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import supervisely.io.env as sly_env
import supervisely.nn.inference.gui.serving_gui_template as page_module
from supervisely import ProjectMeta
from supervisely.app.widgets import Card, Text
from supervisely.nn.inference import SemanticSegmentation
from supervisely.nn.inference.gui import ServingGUITemplate
from supervisely.nn.utils import ModelSource

from common.allocator import give_back_freed_memory
from common.hrda.checks import received
from common.paths import is_file
from common.replacing import replaced
from common.web.guide import LINK
from serve.errors import RequestError, Unavailable
from serve.gate.deploy_request import completed, runnable
from serve.model.deployment import Deployment
from serve.model.labels import model_meta
from serve.model.pool import Pool
from serve.sdk.experiments import Experiments

_NO_MODEL = "No model is deployed. Choose one in the app, or call deploy_from_api."

_DESCRIPTION = ("checkpoint_info", "device", "runtime", "model_source", "model_precision")
"""Public attributes in which the SDK keeps what is deployed."""


@dataclass
class Served:
    """A deployment with what clients are told about it."""

    deployment: Deployment | Pool | None = None
    meta: ProjectMeta | None = None
    classes: list[str] | None = None


_BEGUN_WITH: ContextVar[Served | None] = ContextVar("the model that a request began with", default=None)


class DeployingServer(SemanticSegmentation):
    """The SDK's server as far as it deploys: the model, what is told about it, its sleep.

    Args:
        devices: where a model of the command line is deployed, such as 'cuda:0,cuda:1'; empty: where the SDK read it.
        options: of the SDK's class.
    """

    def __init__(self, *, devices: str = "", **options: Any) -> None:
        self._served, self._devices = Served(), devices
        self._deploying, self._waking, self._dozing = threading.Lock(), threading.RLock(), threading.Lock()
        with replaced(page_module, ExperimentSelector=Experiments, Card=_card_with_guide):
            super().__init__(**options)

    @property
    def deployment(self) -> Deployment | Pool | None:
        """The model that predicts: for a request in progress the one that it began with."""
        return self.present.deployment

    @deployment.setter
    def deployment(self, deployment: Deployment | Pool | None) -> None:
        """Put `deployment` in place of what was deployed before; classes and colours are its own."""
        if deployment is None:
            self._served = Served(None, self._served.meta, self._served.classes)
            return
        meta = model_meta(deployment.classes, deployment.palette)
        self._served = Served(deployment, meta, list(deployment.classes))

    def require_deployment(self) -> Deployment | Pool:
        """The model that predicts.

        Raises:
            RequestError: there is none.
        """
        deployment = self.deployment
        if deployment is None:
            raise RequestError(_NO_MODEL)
        return deployment

    def missing(self) -> str | None:
        """What keeps the service from predicting, as a sentence; None once it can."""
        return None if self.is_model_deployed() else _NO_MODEL

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

    @property
    def model_meta(self) -> ProjectMeta:
        """Classes and tags of the answers.

        Raises:
            RequestError: no model is deployed.
        """
        self.require_deployment()
        return super().model_meta

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
            give_back_freed_memory()
            self._deploying.release()
            self._schedule_freeze_on_inactivity()

    @property
    def present(self) -> Served:
        """What a request that comes now, or this one that has begun, is predicted with."""
        return _BEGUN_WITH.get() or self._served

    # Overrides of private names

    @property
    def _model_meta(self) -> ProjectMeta | None:
        return self.present.meta

    @_model_meta.setter
    def _model_meta(self, meta: ProjectMeta | None) -> None:
        self.present.meta = meta

    def _check_serve_before_call(self, func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._model_served:
                raise RequestError(_NO_MODEL)
            return func(*args, **kwargs)

        return wrapper

    def _unfreeze_model(self) -> None:
        with self._waking:
            super()._unfreeze_model()

    def _schedule_freeze_on_inactivity(self) -> None:
        with self._dozing:
            super()._schedule_freeze_on_inactivity()

    def _extract_model_files_from_checkpoint(self, checkpoint_path: str) -> dict[str, str]:
        return {}

    def _get_custom_model_params_from_args(self) -> tuple[dict[str, str], str, dict[str, Any], bool]:
        path = self._args.model
        return {"checkpoint": path}, ModelSource.CUSTOM, {}, not is_file(path)

    def _get_deploy_params_from_args(self) -> tuple[dict[str, Any], bool]:
        params, need_download = super()._get_deploy_params_from_args()
        return params | ({"device": self._devices} if self._devices else {}), need_download

    def _get_deploy_parameters_from_custom_checkpoint(
        self, checkpoint_path: str, device: str | None, runtime: str
    ) -> dict[str, Any]:
        params = completed({"model_files": {"checkpoint": checkpoint_path}, "device": device, "runtime": runtime})
        params["model_files"] = self._download_custom_model(params["model_files"], False)
        return params

    def _download_model_files(self, deploy_params: dict[str, Any], log_progress: bool = True) -> dict[str, str]:
        # In place: the SDK goes on with the dict that it passed.
        deploy_params.update(completed(deploy_params))
        return super()._download_model_files(deploy_params, log_progress)

    def _download_custom_model(
        self, model_files: dict[str, str], log_progress: bool = True, model_source: str = ModelSource.CUSTOM
    ) -> dict[str, str]:
        path = model_files["checkpoint"]
        checkpoint = {"checkpoint": path}
        if is_file(path):
            return checkpoint
        if sly_env.team_id(raise_not_found=False) is None:
            raise RequestError(
                f"There is no checkpoint at {received(path)} on this machine; one in Team Files needs TEAM_ID in the "
                "app's environment."
            )
        try:
            return super()._download_custom_model(checkpoint, log_progress, model_source)
        except FileNotFoundError as error:
            raise RequestError(
                f"There is no checkpoint at {received(path)}, neither in Team Files nor on this machine."
            ) from error

    def _load_model_headless(self, **deploy_params: Any) -> None:
        super()._load_model_headless(**runnable(completed(deploy_params)))

    def _build_deploy_params_from_api(self, model_name: str, deploy_params: dict[str, Any] | None = None) -> Any:
        raise RequestError(
            f"There are no pretrained HRDA models. Deploy the path of a checkpoint. Received: {received(model_name)}."
        )

    def _set_model_meta_custom_model(self, model_info: dict[str, Any]) -> None:
        """`load_model` sets it."""

    def _reset_gui_state(self) -> None:
        if isinstance(self.gui, ServingGUITemplate):
            self.gui.model_source_tabs.set_active_tab(ModelSource.CUSTOM)


def _card_with_guide(**options: Any) -> Card:
    return Card(content_top_right=Text(LINK), **options)
