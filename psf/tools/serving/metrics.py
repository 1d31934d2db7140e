"""What the server counts and times, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["METRICS_TYPE", "Metrics"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # upper ends of the buckets
PATHS = ("/", "/healthz", "/metrics", "/openapi.json", "/v1/model", "/v1/segment")


class Metrics:
    """The metrics of one server, and of its process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ("method", "path", "status")
        self._requests = Counter("psf_requests", "Answered requests", labels, registry=registry)
        self._seconds = Histogram(
            "psf_request_seconds",
            "Time from the headers of a request to the end of its answer",
            ("path",),
            registry=registry,
            buckets=SECONDS,
        )
        self.network_seconds = Histogram(
            "psf_network_seconds",
            "Time to read an image and run the network on it",
            registry=registry,
            buckets=SECONDS,
        )
        self.merging_seconds = Histogram(
            "psf_merging_seconds",
            "Time to merge masks with given thresholds, and to encode the answer",
            registry=registry,
            buckets=SECONDS,
        )
        self.images_in_flight = Gauge(
            "psf_images_in_flight", "Images that are received, wait, or are segmented", registry=registry
        )
        self.queue_length = Gauge("psf_queue_length", "Jobs that wait for a thread", ("thread",), registry=registry)
        self.kept_results = Gauge("psf_kept_results", "Results kept for other thresholds", registry=registry)
        self.kept_bytes = Gauge("psf_kept_bytes", "Memory of the kept results", registry=registry)

    def record(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an answered request. The labels come from short lists, whatever a client sends."""
        known = _known(path)
        self._requests.labels(method if method in ("GET", "HEAD", "POST") else "other", known, status).inc()
        self._seconds.labels(known).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def _known(path: str) -> str:
    if path in PATHS:
        return path
    if path.startswith("/v1/results/"):
        return "/v1/results/{id}"
    return "/page" if path.startswith("/page/") else "other"
