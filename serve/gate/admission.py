"""Who may come in: a bounded queue of requests and jobs, and what is known about the present one."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass

from common.web.routes import Route
from serve.errors import Overloaded, Unavailable
from serve.limits import Limits


class Admission:
    """Places for requests and jobs that compute, bounded in number and in uploaded bytes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = self._bytes = 0
        self._open = True
        self._change = threading.Condition()

    @property
    def held(self) -> int:
        """Places taken."""
        return self._held

    def require_room(self) -> None:
        """Refuse what would find no place now, before its body has arrived.

        Raises:
            Overloaded: none is free.
            Unavailable: the service is shutting down.
        """
        if not self._open:
            raise Unavailable("The service is shutting down. Send the request to another session, or later.")
        if self._held >= self._limits.max_queue:
            raise Overloaded(
                f"The queue is full: {self._held} requests are computed or wait. "
                f"Try again in {self._limits.retry_after_s} seconds."
            )

    def enter(self) -> Place:
        """Take a place.

        Raises:
            As `require_room`.
        """
        with self._change:
            self.require_room()
            self._held += 1
        return Place(self)

    def close(self) -> None:
        """Let nobody in any more."""
        with self._change:
            self._open = False

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until every place is free again, at most `timeout_s` seconds; whether that came about."""
        with self._change:
            return self._change.wait_for(lambda: self._held == 0, timeout_s)

    def _load(self, size: int) -> None:
        with self._change:
            if self._bytes + size > self._limits.max_queue_bytes:
                raise Overloaded(
                    "The requests that are computed or wait have uploaded too much already. "
                    f"Try again in {self._limits.retry_after_s} seconds."
                )
            self._bytes += size

    def _leave(self, size: int) -> None:
        with self._change:
            self._held -= 1
            self._bytes -= size
            self._change.notify_all()


class Place:
    """A place in the queue. It is free again once everyone who shares it has left: a request, and what it started."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._sharers, self._size = 1, 0
        self._lock = threading.Lock()

    def load(self, size: int) -> None:
        """Count `size` uploaded bytes.

        Raises:
            Overloaded: too much has been uploaded by all.
        """
        self._admission._load(size)
        self._size += size

    def share(self) -> None:
        """Someone else keeps the place too, until they `leave`."""
        with self._lock:
            self._sharers += 1

    def leave(self) -> None:
        """Give up one share."""
        with self._lock:
            self._sharers -= 1
            last = self._sharers == 0
        if last:
            self._admission._leave(self._size)


@dataclass
class Call:
    """One HTTP request on its way through the service."""

    id: str
    """The client's X-Request-Id, or one of ours."""
    route: Route | None = None
    """Its row of the table, once it is let in."""
    place: Place | None = None
    """Its place in the queue, when it computes something."""
    megapixels: float = 0.0
    """What was predicted for it while it waited for the answer."""
    is_of_tool: bool = False
    """Whether it came by `api.task.send_request`, as those of labelling tools do."""
    note: str = ""
    """What its sender should know besides the answer."""

    has_left: bool = False
    """Whether it has given that place up."""

    def leave(self) -> None:
        """Give its place up, if it has one still; a job that it started keeps its own share."""
        if self.place is not None and not self.has_left:
            self.has_left = True
            self.place.leave()


CURRENT: ContextVar[Call | None] = ContextVar("the request that is being answered", default=None)
"""Known in the route, in the threads that the web framework starts for it and in its job."""
