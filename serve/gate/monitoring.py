"""What a monitor asks at `/metrics`, in the text format of Prometheus. Every app has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serve.limits import Limits

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts of one app.

    Args:
        limits: of the service.
        queue_length: places taken in the queue, asked when the metrics are read.
        model: name, encoder, device … of the deployed model, empty when there is none; asked when they are read.
    """

    def __init__(self, limits: Limits, queue_length: Callable[[], int], model: Callable[[], Mapping[str, str]]) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        ProcessCollector(registry=self.registry)
        route = ("route",)
        self.requests = Counter(
            "hrda_requests", "Requests answered, by route and HTTP status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "hrda_request_seconds", "Time to answer a request.", route, registry=self.registry, buckets=_SECONDS
        )
        self.megapixels = Counter("hrda_megapixels", "Megapixels predicted.", registry=self.registry)
        self.images = Counter("hrda_images", "Images predicted.", registry=self.registry)
        self.errors = Counter(
            "hrda_errors", "Predictions and requests that failed, by the error's name.", ("kind",),
            registry=self.registry,
        )  # fmt: skip
        queue = Gauge("hrda_queue_length", "Requests and jobs that are computed or wait.", registry=self.registry)
        queue.set_function(queue_length)
        Gauge("hrda_queue_limit", "Most of them.", registry=self.registry).set(limits.max_queue)
        self._ready = Gauge("hrda_model_deployed", "1 when a model is deployed.", registry=self.registry)
        self._info = Info("hrda_model", "The deployed model.", registry=self.registry)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        model = dict(self._model())
        self._ready.set(bool(model))
        self._info.info(model)
        return generate_latest(self.registry)
