"""What every server counts about its RPCs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["MethodMetrics", "ServerMetrics"]

# Inference answers in a fraction of a millisecond, an upload takes minutes.
_LATENCY_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 120.0,
)  # fmt: skip


class MethodMetrics:
    """The counters of one method, looked up once and kept."""

    __slots__ = ("_handled", "_latency", "_method", "_outcomes", "_service", "started")

    def __init__(
        self, started: Counter, handled: Counter, latency: Histogram, service: str, method: str
    ) -> None:
        self.started = started.labels(service, method)
        self._handled = handled
        self._latency = latency
        self._service = service
        self._method = method
        self._outcomes: dict[str, tuple[Counter, Histogram]] = {}

    def handled(self, code: str, seconds: float) -> None:
        """Counts one RPC that ended with status `code` after `seconds`."""
        outcome = self._outcomes.get(code)
        if outcome is None:
            outcome = self._outcomes[code] = (
                self._handled.labels(self._service, self._method, code),
                self._latency.labels(self._service, self._method, code),
            )
        outcome[0].inc()
        outcome[1].observe(seconds)


class ServerMetrics:
    """RPCs by service, method and code, refused callers, and configuration files that did not load.

    Labels are names from the policy table, never what a caller sent: a path that is no method of
    this server counts as `unknown`.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("grpc_service", "grpc_method")
        self._started = Counter(
            "grpc_server_started_total", "RPCs that were started.", names, registry=registry
        )
        self._handled = Counter(
            "grpc_server_handled_total",
            "RPCs that ended, by status code.",
            (*names, "grpc_code"),
            registry=registry,
        )
        self._latency = Histogram(
            "grpc_server_handling_seconds",
            "Time from the first byte in the servicer to the status, by status code.",
            (*names, "grpc_code"),
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self._refused = Counter(
            "modelrail_auth_failures_total",
            "Calls that were refused before a servicer saw them, by reason.",
            ("reason",),
            registry=registry,
        )
        self._reload_errors = Counter(
            "modelrail_config_reload_errors_total",
            "Changed files that could not be used, so that the old content stays in force.",
            ("file",),
            registry=registry,
        )
        self.unknown = self.method("/unknown/unknown")

    def method(self, path: str) -> MethodMetrics:
        """Returns the counters of the method `/package.Service/Method`."""
        service, _, method = path[1:].rpartition("/")
        return MethodMetrics(self._started, self._handled, self._latency, service, method)

    def refused(self, reason: str) -> None:
        """Counts a call that was refused for its credentials."""
        self._refused.labels(reason).inc()

    def reload_failed(self, file: str) -> None:
        """Counts a changed file (`api_keys`, `tls`) that could not be used."""
        self._reload_errors.labels(file).inc()
