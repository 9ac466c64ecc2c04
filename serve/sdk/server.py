"""The SDK's server put together: its parts, its routes and its life in a process.

Private names that are overridden, and why:

- `_run_server`: host and port can be chosen, and our routes are in place before the first request.

Private names that are read: `_app`, `_is_cli_deploy`.
"""

from __future__ import annotations

from typing import Any

import supervisely.io.env as sly_env
from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from common.web.assets import use_assets
from common.web.connections import run
from serve.errors import RequestError
from serve.gate.admission import Admission
from serve.gate.monitoring import Metrics
from serve.gate.pulse import Pulse
from serve.jobs import Jobs
from serve.limits import Limits
from serve.sdk.predicting import PredictingServer
from serve.sources.instance_api import WatchedApi
from serve.sources.instance_images import InstanceImages


class SdkServer(PredictingServer):
    """The SDK's server with the overrides that this app needs, and plain methods for what is private in it."""

    def __init__(self, host: str, port: int, limits: Limits, **options: Any) -> None:
        self._address = (host, port)
        self.limits, self._gated = limits, None
        self._watched: WatchedApi | None = None
        self.admission = Admission(self.limits)
        self.metrics = Metrics(self.limits, lambda: self.admission.held, self.describe_model)
        self.pulse = Pulse(self.limits.stuck_s)
        super().__init__(sliding_window_mode="none", **options)
        self.cache = InstanceImages(self.limits, sly_env.smart_cache_container_dir())
        self.inference_requests_manager = Jobs(self.limits, self.metrics, self.on_one_model)

    def drain(self) -> None:
        """Let what is computed end, then stop the rest."""
        self.admission.close()
        if not self.admission.wait_until_empty(self.limits.drain_s):
            self.inference_requests_manager.stop_all()
        self.inference_requests_manager.close()

    def describe_model(self) -> dict[str, str]:
        """The deployed model for a monitor; empty without one."""
        raise NotImplementedError

    @property
    def api(self) -> WatchedApi | None:
        """The instance, as the app's own user; None where the app was started without one."""
        own = super().api
        if own is not None and self._watched is None:
            self._watched = WatchedApi(own, self.limits)
        return self._watched

    def api_from_request(self, request: Request) -> WatchedApi:
        """The instance, as the user whose token came with the request, or else as the app's own.

        Raises:
            RequestError: the app was started without an instance.
        """
        given = getattr(request.state, "api", None)
        if given is not None:
            return WatchedApi(given, self.limits)
        if self.api is None:
            raise RequestError(
                "Ids belong to a Supervisely instance, and this service was started without one: set SERVER_ADDRESS "
                "and API_TOKEN in its environment, or send the images themselves."
            )
        return self.api

    @property
    def has_page(self) -> bool:
        """Whether the SDK makes a page of widgets at the root."""
        return self.gui is not None

    def serve(self) -> None:
        """Set up the app's routes and, on the command line, answer requests until stopped."""
        super().serve()
        self._gated = self.add_routes(self._app.get_server())
        use_assets(self._app.get_server())
        if self._is_cli_deploy:
            run(self.app, *self._address, drain_s=self.limits.drain_s)

    @property
    def app(self) -> ASGIApp:
        """What a server runs: the SDK's app behind the gate."""
        return self._gated

    def add_routes(self, server: FastAPI) -> ASGIApp:
        """Called once, when the SDK's routes are there and no request has come yet; what stands around all of them."""
        raise NotImplementedError

    def _run_server(self) -> None:
        """`serve` does it, once our routes are in place."""
