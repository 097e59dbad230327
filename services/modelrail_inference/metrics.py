"""Metrics, rendered from plain counters when they are scraped.

Triton's names have no `_total`, which prometheus-client's Counter would add, hence the samples
made by hand. Label values are names of loaded models only, so callers cannot make series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import (
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from modelrail_inference.repository.definition import LoadedModel
from modelrail_inference.repository.repository import Repository
from modelrail_inference.statistics import LATENCY_BUCKETS_SECONDS, Failure, Statistics

_LABELS = ("model", "version")

# Rendered as untyped: the text format of prometheus-client names every counter `…_total`.
_COUNTERS: dict[str, tuple[str, Callable[[Statistics], float]]] = {
    "nv_inference_request_success": ("Requests answered", lambda s: s.success.count),
    "nv_inference_count": ("Batch items answered", lambda s: s.inference_count),
    "nv_inference_exec_count": ("Runs of the model", lambda s: s.execution_count),
    "nv_inference_request_duration_us": ("Total time, microseconds", lambda s: s.success.ns / 1e3),
    "nv_inference_queue_duration_us": ("Time in queue, microseconds", lambda s: s.queue.ns / 1e3),
    "nv_inference_compute_input_duration_us": (
        "Time to decode inputs, microseconds",
        lambda s: s.compute_input.ns / 1e3,
    ),
    "nv_inference_compute_infer_duration_us": (
        "Time in the model, microseconds",
        lambda s: s.compute_infer.ns / 1e3,
    ),
    "nv_inference_compute_output_duration_us": (
        "Time to collect outputs, microseconds",
        lambda s: s.compute_output.ns / 1e3,
    ),
}


class InferenceCollector(Collector):
    """Shows the counters of the loaded versions.

    Args:
        repository: The loaded models.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def describe(self) -> Iterable[Metric]:
        """Names nothing in advance, so that registering does not scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yields Triton's metrics, then the service's own."""
        models = list(self._repository.serving())
        for name, (text, value) in _COUNTERS.items():
            yield _family(name, text, "unknown", models, value)
        yield _failures(models)
        yield _family(
            "nv_inference_pending_request_count",
            "Requests admitted and not answered yet",
            "gauge",
            models,
            lambda s: s.pending,
        )
        load = GaugeMetricFamily(
            "nv_model_load_duration_secs", "Time to load the model, seconds", labels=_LABELS
        )
        provider = GaugeMetricFamily(
            "modelrail_inference_provider_info",
            "Execution provider that runs the version; always 1",
            labels=(*_LABELS, "provider"),
        )
        for model in models:
            load.add_metric(_values(model), model.load_seconds)
            provider.add_metric((*_values(model), model.provider.value), 1)
        yield load
        yield provider
        yield GaugeMetricFamily(
            "modelrail_inference_loaded_versions", "Versions that take requests", value=len(models)
        )
        yield _durations(models)


def _family(
    name: str,
    text: str,
    kind: str,
    models: list[LoadedModel],
    value: Callable[[Statistics], float],
) -> Metric:
    metric = Metric(name, text, kind)
    for model in models:
        metric.add_sample(
            name, dict(zip(_LABELS, _values(model), strict=True)), value(model.statistics)
        )
    return metric


def _failures(models: list[LoadedModel]) -> Metric:
    name = "nv_inference_request_failure"
    metric = Metric(name, "Requests not answered, by reason", "unknown")
    for model in models:
        for reason in Failure:
            labels = {**dict(zip(_LABELS, _values(model), strict=True)), "reason": reason.value}
            metric.add_sample(name, labels, model.statistics.failures[reason])
    return metric


def _durations(models: list[LoadedModel]) -> Metric:
    metric = HistogramMetricFamily(
        "modelrail_inference_request_duration_seconds",
        "Time from admission to answer of answered requests",
        labels=_LABELS,
    )
    for model in models:
        counted = 0
        buckets: list[tuple[str, float]] = []
        edges = [*map(str, LATENCY_BUCKETS_SECONDS), "+Inf"]
        for edge, count in zip(edges, model.statistics.latency_buckets, strict=True):
            counted += count
            buckets.append((edge, counted))
        metric.add_metric(_values(model), buckets, sum_value=model.statistics.success.ns / 1e9)
    return metric


def _values(model: LoadedModel) -> tuple[str, str]:
    return model.model, str(model.number)
