"""Counts and times of the server in Prometheus' format. No label or value comes from the text of a request."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "medtune_requests", "Requests by model and HTTP status", ["model", "status"], registry=registry
        )
        self.ends = Counter("medtune_ends", "Requests of the engine by how they ended", ["reason"], registry=registry)
        self.prompt_tokens = Counter("medtune_prompt_tokens", "Tokens of prompts, images included", registry=registry)
        self.generated_tokens = Counter("medtune_generated_tokens", "Tokens of answers", registry=registry)
        self.images = Counter("medtune_images", "Images in requests", registry=registry)
        self.routed = Counter("medtune_routed", "Requests by adapter", ["adapter"], registry=registry)
        self.engine_failures = Counter("medtune_engine_failures", "Times the engine was made anew", registry=registry)
        self.seconds = Histogram(
            "medtune_request_seconds", "From arrival to the last token", buckets=_SECONDS, registry=registry
        )
        self.first = Histogram(
            "medtune_first_token_seconds", "From arrival to the first token", buckets=_SECONDS, registry=registry
        )
        self.steps = Histogram("medtune_step_seconds", "Time of a decoding step", buckets=_STEPS, registry=registry)
        self.rows = Histogram(
            "medtune_batch_rows", "Rows of a decoding step", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self._waiting = Gauge(
            "medtune_requests_waiting", "Requests that have not entered the engine", registry=registry
        )
        self._running = Gauge("medtune_requests_running", "Requests in the engine", registry=registry)
        self._total, self._count = 0.0, 0

    def watch(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """Tell where the lengths of the queue and the batch are read."""
        self._waiting.set_function(waiting)
        self._running.set_function(running)

    def stepped(self, rows: int, seconds: float) -> None:
        """Count a decoding step."""
        self.steps.observe(seconds)
        if rows:
            self.rows.observe(rows)

    def first_token(self, seconds: float) -> None:
        """Count the first token of an answer."""
        self.first.observe(seconds)

    def ended(self, reason: str, seconds: float | None = None, tokens: int = 0) -> None:
        """Count a request that has left the engine or the queue; with its time if it was answered."""
        self.ends.labels(reason).inc()
        self.generated_tokens.inc(tokens)
        if seconds is not None:
            self.seconds.observe(seconds)
            self._total, self._count = self._total + seconds, self._count + 1

    def mean_seconds(self) -> float:
        """Return the mean time of an answer; 1 before the first."""
        return self._total / self._count if self._count else 1.0

    def text(self) -> bytes:
        """Return the page ``/metrics``."""
        return generate_latest(self.registry)
