"""The counters of RPCs: shown as prometheus-client would, and readable while they change."""

from __future__ import annotations

import threading

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from modelrail_server.observability.metrics import ServerMetrics

BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 120.0,
)  # fmt: skip
PATH = "/test.v1.Echo/Unary"
CALLS = [("OK", 0.0001), ("OK", 0.0005), ("OK", 0.0006), ("NOT_FOUND", 3.0), ("OK", 500.0)]


def expected() -> CollectorRegistry:
    """The same calls, counted by prometheus-client."""
    registry = CollectorRegistry()
    labels = ("grpc_service", "grpc_method")
    started = Counter(
        "grpc_server_started_total", "RPCs that were started.", labels, registry=registry
    )
    handled = Counter(
        "grpc_server_handled_total",
        "RPCs that ended, by status code.",
        (*labels, "grpc_code"),
        registry=registry,
    )
    latency = Histogram(
        "grpc_server_handling_seconds",
        "Time from the first byte in the servicer to the status, by status code.",
        (*labels, "grpc_code"),
        buckets=BUCKETS,
        registry=registry,
    )
    refused = Counter(
        "modelrail_auth_failures_total",
        "Calls that were refused before a servicer saw them, by reason.",
        ("reason",),
        registry=registry,
    )
    started.labels("unknown", "unknown")
    for code, seconds in CALLS:
        started.labels("test.v1.Echo", "Unary").inc()
        handled.labels("test.v1.Echo", "Unary", code).inc()
        latency.labels("test.v1.Echo", "Unary", code).observe(seconds)
    refused.labels("NO_KEY").inc(2)
    turned_away = Counter(
        "modelrail_refused_calls_total",
        "Calls that were refused because the server had too many, by reason.",
        ("reason",),
        registry=registry,
    )
    turned_away.labels("TOO_MANY_CALLS").inc(3)
    return registry


def families(registry: CollectorRegistry) -> dict[str, tuple[str, str, set[str]]]:
    def shown(metric: Metric) -> tuple[str, str, set[str]]:
        # When a counter was made is shown only outside of a server: `serve.run` turns it off.
        samples = [s for s in metric.samples if not s.name.endswith("_created")]
        values = {f"{s.name} {s.labels} {float(s.value)}" for s in samples}
        return metric.type, metric.documentation, values

    return {metric.name: shown(metric) for metric in registry.collect()}


def test_the_counters_are_shown_as_prometheus_client_shows_its_own() -> None:
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    for code, seconds in CALLS:
        metrics.method(PATH).started += 1
        metrics.method(PATH).handled(code, seconds)
    metrics.refused("NO_KEY")
    metrics.refused("NO_KEY")
    metrics.turned_away += 3
    shown = families(registry)
    assert shown.pop("modelrail_config_reload_errors")[0] == "counter"
    assert shown == families(expected())


def test_a_method_that_nobody_called_has_no_series() -> None:
    registry = CollectorRegistry()
    ServerMetrics(registry).method(PATH)
    assert b"test.v1.Echo" not in generate_latest(registry)
    assert b'grpc_method="unknown"' in generate_latest(registry)


def test_nobody_else_can_register_the_same_names() -> None:
    registry = CollectorRegistry()
    ServerMetrics(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Counter("grpc_server_handled_total", "", registry=registry)


def test_a_scrape_sees_whole_numbers_that_only_grow_while_calls_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    calls, done = 30_000, threading.Event()

    def count() -> None:
        for number in range(calls):
            method = metrics.method(f"/test.v1.Echo/M{number % 50}")
            method.started += 1
            method.handled(f"CODE{number % 7}", number % 100 / 1000)
        done.set()

    thread = threading.Thread(target=count)
    thread.start()
    last: dict[str, float] = {}
    ended = False
    try:
        while not ended:
            ended = done.is_set()
            shown: dict[str, float] = {}
            buckets: dict[str, float] = {}
            for metric in registry.collect():
                for sample in metric.samples:
                    key = f"{sample.name}{sorted(sample.labels.items())}"
                    shown[key] = sample.value
                    series = "".join(v for k, v in sorted(sample.labels.items()) if k != "le")
                    if sample.name.endswith("_bucket"):
                        assert sample.value >= buckets.get(series, 0)
                        buckets[series] = sample.value
                    elif sample.name.endswith("_count"):
                        assert sample.value == buckets[series]
            assert all(shown[key] >= value for key, value in last.items())
            last = shown
    finally:
        thread.join()
    handled = [value for key, value in last.items() if key.startswith("grpc_server_handled_total")]
    assert sum(handled) == calls
