"""The SDK's way to an instance with an end: it waits for an answer for ever, as long as some byte comes now and then.

Nothing private of the SDK is reached into: `Api.post`, through which its calls go, is overridden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from supervisely import Api, logger
from supervisely.io.network_exceptions import RETRY_STATUS_CODES

from common.hrda.web import CONNECT_S, MOST_REDIRECTS, REDIRECTS, Deadline
from serve.errors import InstanceFailed, Stopped
from serve.jobs import PRESENT
from serve.limits import Limits

T = TypeVar("T")
_PIECE, _GAINED = 1 << 16, 1 << 20
_LONGEST_PAUSE_S, _ASKED_EVERY_S = 60.0, 0.5


class WatchedApi(Api):
    """An instance that is waited for within bounds, and only while the answer is wanted.

    Each try of a call has `limits.instance_timeout_s` until its last byte. What may pass is tried again, as by
    the SDK, until the prediction that needs it is stopped or its client has had its time.

    Args:
        api: the same instance, as the same user.
        limits: of the service.
    """

    def __init__(self, api: Api, limits: Limits) -> None:
        super().__init__(api.server_address, api.token, retry_count=api.retry_count, external_logger=api.logger)
        self.retry_sleep_sec = api.retry_sleep_sec
        self._limit_s = limits.instance_timeout_s

    def post(
        self, method: str, data: Any, retries: int | None = None, stream: bool = False, raise_error: bool = False
    ) -> requests.Response:
        """Call a method of the instance; what is uploaded as a form or read in pieces goes the SDK's own way.

        Raises:
            requests.RequestException: the instance refuses, or cannot be reached.
            InstanceFailed: its answer takes too long.
            Stopped: the answer is not wanted any more.
        """
        if stream or not isinstance(data, dict):
            return super().post(method, data, retries, stream, raise_error)

        def ask() -> requests.Response:
            with self._asked(method, data) as (answer, deadline):
                with _explained(deadline):
                    # Whoever reads it later finds it whole.
                    _ = answer.content
                return answer

        return self._patiently(ask, 1 if raise_error else retries or self.retry_count)

    def pieces(self, method: str, data: dict[str, Any]) -> Iterator[bytes]:
        """The content of an answer as it comes; each megabyte has the time of a whole call.

        Raises:
            As `post`.
        """
        with ExitStack() as call:
            answer, deadline = self._patiently(lambda: call.enter_context(self._asked(method, data)), self.retry_count)
            content, gained = answer.iter_content(_PIECE), 0
            while True:
                with _explained(deadline):
                    piece = next(content, b"")
                if not piece:
                    return
                yield piece
                gained += len(piece)
                if gained >= _GAINED:
                    gained = 0
                    deadline.restart()

    @contextmanager
    def _asked(self, method: str, data: dict[str, Any]) -> Iterator[tuple[requests.Response, Deadline]]:
        """An answer of which the head has come."""
        with Deadline(self._limit_s, _wanted()) as deadline, requests.Session() as session:
            for scheme in ("https://", "http://"):
                session.mount(scheme, _Watched(deadline))
            with _explained(deadline):
                answer = self._answer(session, method, data)
                if not answer.ok:
                    # It says why.
                    _ = answer.content
            with answer:
                answer.raise_for_status()
                yield answer, deadline

    def _answer(self, session: requests.Session, method: str, data: dict[str, Any]) -> requests.Response:
        url, body = f"{self.api_server_address}/v3/{method}", {**data, **self.additional_fields}
        for _ in range(MOST_REDIRECTS):
            # requests itself would turn the call into another one.
            answer = session.post(
                url,
                json=body,
                headers=self.headers,
                stream=True,
                allow_redirects=False,
                timeout=(CONNECT_S, self._limit_s),
            )
            if answer.status_code not in REDIRECTS:
                return answer
            target = urljoin(url, answer.headers.get("Location", ""))
            if urlsplit(target).hostname != urlsplit(url).hostname:
                break
            url = target
        raise InstanceFailed(
            "The Supervisely instance leads elsewhere. Set SERVER_ADDRESS, or server_address of the request, to the "
            "address at which it answers."
        )

    def _patiently(self, ask: Callable[[], T], tries: int) -> T:
        wanted = _wanted()
        for number in range(tries):
            try:
                return ask()
            except requests.RequestException as error:
                if number == tries - 1 or not _may_pass(error):
                    raise
                logger.warning(f"The instance is asked again: {type(error).__name__}")
            end = time.monotonic() + min(self.retry_sleep_sec * 2**number, _LONGEST_PAUSE_S)
            while (left := end - time.monotonic()) > 0:
                if not wanted():
                    raise Stopped
                time.sleep(min(left, _ASKED_EVERY_S))
        raise InstanceFailed("The Supervisely instance was not asked: its number of tries is 0.")


class _Watched(HTTPAdapter):
    """Connections that a deadline can hang up, whatever they wait for."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        """The pool for a request, by its name in requests."""
        pool, deadline = super().get_connection_with_tls_context(*args, **options), self._deadline

        class Connection(pool.ConnectionCls):
            def connect(self) -> None:
                super().connect()
                deadline.watch(self.sock)

        pool.ConnectionCls = Connection
        return pool


def _wanted() -> Callable[[], bool]:
    """Tells whether the present prediction goes on; outside of one always yes."""
    job = PRESENT.get()
    return lambda: job is None or not job.is_stopped()


@contextmanager
def _explained(deadline: Deadline) -> Iterator[None]:
    """Within it the instance is waited for."""
    error: Exception | None = None
    try:
        yield
    except (requests.RequestException, OSError) as raised:
        error = raised
    if deadline.left == 0:
        # What was cut off may look whole.
        if not _wanted()():
            raise Stopped from error
        raise InstanceFailed(
            f"The Supervisely instance did not answer within {deadline.seconds:g} seconds. Try again later."
        ) from error
    if error is not None:
        raise error


def _may_pass(error: requests.RequestException) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code in RETRY_STATUS_CODES
    return isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError)
