"""What every server counts about its RPCs.

The counters of RPCs are plain numbers. They change on the event loop only, and no lock guards them:
they are on the path of every request. The thread of a scrape reads them meanwhile. That is sound
because it reads whole objects: a number is replaced, never changed, and `list(buckets)` and
`dict.copy()` are single operations of the interpreter, during which no other thread changes the
original. What a scrape can see is a call that is in one counter and not yet in the next; each
counter by itself only grows, and the `_count` of a histogram is the sum of the buckets that were
read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["MethodMetrics", "ServerMetrics"]

# Inference answers in a fraction of a millisecond, an upload takes minutes.
_LATENCY_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 120.0,
)  # fmt: skip
_EDGES = (*map(floatToGoString, _LATENCY_BUCKETS), "+Inf")
_METHOD_LABELS = ("grpc_service", "grpc_method")
_OUTCOME_LABELS = (*_METHOD_LABELS, "grpc_code")


class _Latency:
    """How long the calls of one method took that ended with one code."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(_EDGES)
        self.seconds = 0.0


class MethodMetrics:
    """The counters of one method, looked up once and kept.

    Args:
        service: Value of the label `grpc_service`.
        method: Value of the label `grpc_method`.
    """

    __slots__ = ("_latencies", "labels", "started")

    def __init__(self, service: str, method: str) -> None:
        self.labels = (service, method)
        self.started = 0
        self._latencies: dict[str, _Latency] = {}

    def handled(self, code: str, seconds: float) -> None:
        """Counts one RPC that ended with status `code` after `seconds`."""
        latency = self._latencies.get(code)
        if latency is None:
            latency = self._latencies[code] = _Latency()
        latency.buckets[bisect_left(_LATENCY_BUCKETS, seconds)] += 1
        latency.seconds += seconds

    def read(self) -> Iterator[tuple[tuple[str, str, str], list[int], float]]:
        """Yields labels, cumulative buckets and the sum of seconds for each code, on any thread."""
        for code, latency in self._latencies.copy().items():
            yield (*self.labels, code), list(accumulate(list(latency.buckets))), latency.seconds


class ServerMetrics(Collector):
    """RPCs by service, method and code, refused callers, and configuration files that did not load.

    Labels are names from the policy table, never what a caller sent: a path that is no method of
    this server counts as `unknown`. A method is shown once it was called.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._methods: dict[str, MethodMetrics] = {}
        self._refused: dict[str, int] = {}
        self.turned_away = 0
        """Calls that were refused because as many ran as may."""
        # Told by threads of gRPC's, which reload certificates; so rare that its lock does not cost.
        self._reload_errors = Counter(
            "modelrail_config_reload_errors_total",
            "Changed files that could not be used, so that the old content stays in force.",
            ("file",),
            registry=registry,
        )
        self.unknown = self.method("/unknown/unknown")
        registry.register(self)

    def method(self, path: str) -> MethodMetrics:
        """Returns the counters of the method `/package.Service/Method`."""
        metrics = self._methods.get(path)
        if metrics is None:
            service, _, method = path[1:].rpartition("/")
            metrics = self._methods[path] = MethodMetrics(service, method)
        return metrics

    def refused(self, reason: str) -> None:
        """Counts a call that was refused for its credentials."""
        self._refused[reason] = self._refused.get(reason, 0) + 1

    def reload_failed(self, file: str) -> None:
        """Counts a changed file (`api_keys`, `tls`) that could not be used."""
        self._reload_errors.labels(file).inc()

    def describe(self) -> Iterable[Metric]:
        """Names the metrics, so that nobody else can register theirs under the same names."""
        return _families()

    def collect(self) -> Iterable[Metric]:
        """Renders the counters; runs on the thread of a scrape."""
        started, handled, latency, refused, turned_away = families = _families()
        for metrics in self._methods.copy().values():
            if metrics.started or metrics is self.unknown:
                started.add_metric(metrics.labels, metrics.started)
            for labels, buckets, seconds in metrics.read():
                handled.add_metric(labels, buckets[-1])
                latency.add_metric(labels, list(zip(_EDGES, buckets, strict=True)), seconds)
        for reason, count in self._refused.copy().items():
            refused.add_metric((reason,), count)
        turned_away.add_metric(("TOO_MANY_CALLS",), self.turned_away)
        return families


def _families() -> tuple[
    CounterMetricFamily,
    CounterMetricFamily,
    HistogramMetricFamily,
    CounterMetricFamily,
    CounterMetricFamily,
]:
    return (
        CounterMetricFamily(
            "grpc_server_started_total", "RPCs that were started.", labels=_METHOD_LABELS
        ),
        CounterMetricFamily(
            "grpc_server_handled_total", "RPCs that ended, by status code.", labels=_OUTCOME_LABELS
        ),
        HistogramMetricFamily(
            "grpc_server_handling_seconds",
            "Time from the first byte in the servicer to the status, by status code.",
            labels=_OUTCOME_LABELS,
        ),
        CounterMetricFamily(
            "modelrail_auth_failures_total",
            "Calls that were refused before a servicer saw them, by reason.",
            labels=("reason",),
        ),
        CounterMetricFamily(
            "modelrail_refused_calls_total",
            "Calls that were refused because the server had too many, by reason.",
            labels=("reason",),
        ),
    )
