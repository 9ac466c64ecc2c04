"""How a training begins and how it ends: one at a time, and every refusal one sentence for whoever asked.

A training is asked for on the page, by `/train_from_api`, or by the launch of the task (`start_training` in the app
state that the platform sends along). `REACHES` lists what is overridden or used of the SDK.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import supervisely.nn.training.train_app as train_app_module
from fastapi import FastAPI, Request
from supervisely import Api, EventType, is_production, logger

from common.hrda.checks import received
from common.replacing import replaced
from train.sdk.benchmark import BenchmarkedTrainApp
from train.sdk.gui import Refused

REACHES = {
    # Overridden
    "TrainApp._wrapped_start_training": "one training at a time; errors reach an API user as one sentence",
    "TrainApp._show_error": "the page and /train_status say what is wrong instead of pointing to the log",
    # Called or read
    "TrainApp._exit_code": "a task whose training was refused ends as failed",
    "TrainApp._api": "the instance",
    "TrainApp._server": "to add a route",
}
"""Private names of the SDK, and why they are needed."""

GRACE_S = 10.0
"""How long a launched app goes on answering after a refusal: clients wait for its first answer before they look at the
task, once a second."""
_RUNNING = "A training is running in this app already. Wait for its end, or start another app."


class StartedTrainApp(BenchmarkedTrainApp):
    """A training app that carries out one training at a time, asked for in whatever way."""

    def __init__(self, *args: Any) -> None:
        self._training_lock = threading.Lock()
        self._starting = threading.Lock()
        self._is_reserved = self._is_launched = self._is_finalized = False
        self._somebody_watches = True
        self.has_work_left = False
        """Whether a training runs, or what it made is not uploaded yet."""
        self.is_leaving = False
        """Whether the app is to end once that is done."""
        super().__init__(*args)
        self._answer_training_requests()

    def begin_work(self) -> None:
        """A training or an upload begins."""

    def given_up(self) -> None:
        """The work has ended without an experiment; the page goes on."""

    @property
    def api(self) -> Api:
        """The instance."""
        return self._api

    @property
    def server(self) -> FastAPI:
        """The app's own server."""
        return self._server

    @property
    def auto_start(self) -> bool:
        """Whether the launch of the task asked for a training, be it one that cannot be."""
        return self.gui.refused_launch is not None or super().auto_start

    def start_in_thread(self) -> None:
        """Train as soon as the server is up.

        Nobody is expected at the page: what cannot be carried out ends the task as failed, with the sentence.
        """
        self._somebody_watches, self._is_launched = False, True
        super().start_in_thread()

    def _answer_training_requests(self) -> None:
        route = "/train_from_api"
        # The SDK's own answers a body that it does not understand with an internal error.
        routes = self.server.router.routes
        routes[:] = [known for known in routes if getattr(known, "path", None) != route]

        @self.server.post(route)
        def train_from_api(request: Request) -> dict[str, str]:
            """Train as an app state says; with `wait` (the default) the answer comes when all is uploaded."""
            body = getattr(request.state, "state", None)
            if not isinstance(body, Mapping) or "app_state" not in body:
                raise Refused(
                    f'The body must look like {{"state": {{"app_state": {{…}}}}}}. Received: state = {received(body)}.'
                )
            wait = body.get("wait", True)
            if not isinstance(wait, bool):
                raise Refused(f"wait must be true or false. Received: {received(wait)}.")
            self._reserve(body["app_state"])
            if wait:
                self._train_reserved()
                return {"result": "model was successfully trained"}
            threading.Thread(target=self._train_unattended, name="training").start()
            return {"result": "model training started"}

    def _reserve(self, app_state: Any) -> None:
        # Loading presses the page's buttons: of several requests at once, each would undo what another has pressed.
        with self._starting:
            if self._is_reserved:
                raise Refused(_RUNNING, 409)
            self.gui.load_from_app_state(app_state)
            self._is_reserved, self._somebody_watches = True, False

    def _train_reserved(self) -> None:
        try:
            self._wrapped_start_training()
        finally:
            self._is_reserved = False

    def _train_unattended(self) -> None:
        try:
            self._train_reserved()
        except Refused as refusal:
            # Said on the page and by /train_status; there is nobody else to tell.
            logger.info(f"Training from the API: {refusal}")

    def _wrapped_start_training(self) -> None:
        if not self._is_launched:
            self._train()
            return
        self._is_launched = False
        try:
            if self.gui.refused_launch is not None:
                raise Refused(self.gui.refused_launch)
            self._train()
        except Refused as refusal:
            self._fail(str(refusal))

    def _train(self) -> None:
        with self._at_work("The training ended with an error"):
            name = self.gui.training_process.get_experiment_name()
            if not name or set("\\/") & set(name):
                # The SDK would end the app.
                refusal = Refused(f"Give the experiment a name without slashes. Received: {received(name)}.")
                self.gui.show_status(f"Error: {refusal}", "error")
                raise refusal
            super()._wrapped_start_training()

    def _fail(self, sentence: str) -> None:
        """End the task as failed: whoever launched it looks at nothing else."""
        logger.critical(sentence, extra={"event_type": EventType.TASK_CRASHED, "exc_str": sentence})
        if is_production():
            try:
                self.api.task.set_output_error(self.task_id, "The training could not be carried out", sentence)
            except Exception as error:
                logger.warning(f"The instance was not told why the training could not be carried out: {error!r}")
        if self._is_finalized or self.is_leaving:
            # The app ends already.
            return
        threading.Event().wait(GRACE_S)
        if not self.has_work_left:
            self._exit_code = 1
            self.app.shutdown()

    @contextmanager
    def _at_work(self, problem: str) -> Iterator[None]:
        # Who sees on the page that a training has failed may click before all of its end is done.
        if not self._training_lock.acquire(timeout=2.0):
            raise Refused(_RUNNING, 409)
        self.begin_work()
        self._is_finalized = False
        self.gui.is_training = self.has_work_left = True
        self.gui.training_process.show_running(True)
        try:
            yield
        except Refused:
            raise
        except Exception as error:
            raise Refused(_sentence(problem, error), 500) from error
        finally:
            self.gui.is_training = self.has_work_left = False
            self._somebody_watches = True
            try:
                # After uploading the app ends: what is not done by then would be cut off.
                if not self._is_finalized:
                    self.given_up()
                    self.gui.training_process.show_running(False)
            finally:
                self._training_lock.release()
                if self.is_leaving and not self._is_finalized:
                    self.app.shutdown()

    def _show_error(self, message: str, e: Exception | None = None) -> None:
        if isinstance(e, Refused):
            # The sentence says it all; the SDK would log where it was raised.
            message, e = f"Error: {e.detail}", None
        elif e is not None:
            message = _sentence(message, e)
        # The SDK's dialog would open again with every reload of the page, also long after it was closed.
        with replaced(train_app_module, show_dialog=_no_dialog):
            super()._show_error(message, e)
        self.gui.show_status(message, "error")
        self.gui.training_logs.card.lock("The training has ended with an error: step Training says why")


def _no_dialog(**_: str) -> None:
    """Nothing opens: the sentence is on the card."""


def _sentence(message: str, error: Exception) -> str:
    return str(error) if isinstance(error, Refused) else f"{message.rstrip('.')}. {type(error).__name__}: {error}"
