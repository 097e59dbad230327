"""Metrics, rendered from plain counters when they are scraped.

Triton's names first, exactly as it writes them, then the service's own. Label values are names of
loaded models and words of this program, never what a caller sent, so callers cannot make series.
The histograms of a version are shown from its first request on: a server with a thousand models of
which most are idle stays cheap to scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelrail_inference.gpus import Gpus, GpuUsage
from modelrail_inference.host import Host
from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.repository.repository import Repository
from modelrail_inference.statistics import (
    BATCH_SIZE_EDGES,
    LATENCY_EDGES_US,
    Failure,
    Latency,
    Refusal,
    Statistics,
)
from modelrail_server.observability.exposition import WrittenMetric, label


class _Unit(NamedTuple):
    """How a latency is shown."""

    word: str
    ns: float
    edges: tuple[str, ...]


_MICROSECONDS = _Unit("Microseconds", 1e3, (*map(str, LATENCY_EDGES_US), "+Inf"))
_SECONDS = _Unit("Seconds", 1e9, (*(f"{edge / 1e6:g}" for edge in LATENCY_EDGES_US), "+Inf"))
_EDGES_ITEMS = (*map(str, BATCH_SIZE_EDGES), "+Inf")

_Number = Callable[[Statistics], float]

_TRITON_COUNTERS: dict[str, tuple[str, _Number]] = {
    "nv_inference_request_success": ("Requests answered", lambda s: s.success_count),
    "nv_inference_count": ("Batch items answered", lambda s: s.inference_count),
    "nv_inference_exec_count": ("Runs of the model", lambda s: s.execution_count),
    "nv_inference_request_duration_us": (
        "Total time of the answered requests, microseconds",
        lambda s: s.request_latency.ns // 1000,
    ),
    "nv_inference_queue_duration_us": (
        "Time in queue of the answered requests, microseconds",
        lambda s: s.queue_latency.ns // 1000,
    ),
    "nv_inference_compute_input_duration_us": (
        "Time to gather the inputs of the answered requests, microseconds",
        lambda s: s.input_ns // 1000,
    ),
    "nv_inference_compute_infer_duration_us": (
        "Time in the model of the answered requests, microseconds",
        lambda s: s.infer_ns // 1000,
    ),
    "nv_inference_compute_output_duration_us": (
        "Time to take apart the outputs of the answered requests, microseconds",
        lambda s: s.output_ns // 1000,
    ),
}

_GPU_GAUGES: dict[str, tuple[str, Callable[[GpuUsage], float | None]]] = {
    "nv_gpu_utilization": (
        "Share of the time in which the GPU computed anything, 0 to 1",
        lambda gpu: gpu.utilization,
    ),
    "nv_gpu_memory_total_bytes": ("Memory of the GPU", lambda gpu: gpu.memory_total_bytes),
    "nv_gpu_memory_used_bytes": ("Memory of the GPU in use", lambda gpu: gpu.memory_used_bytes),
    "nv_gpu_power_usage": ("Power that the GPU takes, watts", lambda gpu: gpu.power_usage_watts),
    "nv_gpu_power_limit": ("Most that the GPU may take, watts", lambda gpu: gpu.power_limit_watts),
}

_LATENCIES: dict[str, tuple[str, Callable[[Statistics], Latency]]] = {
    "request": ("from arrival to answer, of the answered requests", lambda s: s.request_latency),
    "queue": ("in the queue, of the answered requests", lambda s: s.queue_latency),
    "compute_input": ("gathering the inputs, of the runs", lambda s: s.input_latency),
    "compute_infer": ("in the model, of the runs", lambda s: s.infer_latency),
    "compute_output": ("taking the outputs apart, of the runs", lambda s: s.output_latency),
}
"""Triton's word for a part of the time, its meaning and its numbers."""

_OWN_LATENCIES = {"request": "request", "queue": "queue", "compute": "compute_infer"}
"""Our word for a part of the time, and Triton's."""


class _Shown(NamedTuple):
    """A version in one scrape: its labels are written once for all of its lines."""

    model: LoadedModel
    statistics: Statistics
    labels: str


class InferenceCollector(Collector):
    """Shows the counters of the loaded versions.

    Args:
        repository: The loaded models.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._host = Host()
        self._gpus = Gpus()

    def describe(self) -> Iterable[Metric]:
        """Names nothing in advance, so that registering does not scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yields Triton's metrics, then the service's own; runs on the thread of a scrape."""
        models = [_shown(model) for model in self._repository.serving()]
        asked = [one for one in models if one.statistics.success_count]
        yield from self._triton(models, asked)
        yield from self._own(models, asked)

    def _triton(self, models: list[_Shown], asked: list[_Shown]) -> Iterator[Metric]:
        for name, (text, number) in _TRITON_COUNTERS.items():
            yield _numbers(name, text, "counter", models, number)
        yield _by_reason(
            "nv_inference_request_failure",
            "Requests not answered, by reason",
            models,
            Failure,
            lambda s: s.failures,
        )
        yield _numbers(
            "nv_inference_pending_request_count",
            "Requests that wait for a session",
            "gauge",
            models,
            lambda s: s.pending,
        )
        yield _facts(
            "nv_model_load_duration_secs",
            "Time to load the model, seconds",
            models,
            lambda m: m.load_seconds,
        )
        for part, (text, latency) in _LATENCIES.items():
            name = f"nv_inference_{part}_duration_histogram_us"
            yield _latencies(name, text, asked, latency, _MICROSECONDS)
        yield from self._machine()

    def _machine(self) -> Iterator[Metric]:
        if (usage := self._host.usage()) is not None:
            yield GaugeMetricFamily(
                "nv_cpu_utilization",
                "Share of the machine's CPU time that was used since the last scrape, 0 to 1",
                value=usage.cpu_utilization,
            )
            yield GaugeMetricFamily(
                "nv_cpu_memory_total_bytes",
                "Memory of the machine",
                value=usage.memory_total_bytes,
            )
            yield GaugeMetricFamily(
                "nv_cpu_memory_used_bytes",
                "Memory of the machine that is not available for new work",
                value=usage.memory_used_bytes,
            )
        gpus = self._gpus.usage()
        for name, (text, gpu_number) in _GPU_GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=("gpu_uuid",))
            for gpu in gpus:
                if (number := gpu_number(gpu)) is not None:
                    family.add_metric((gpu.uuid,), number)
            if family.samples:
                yield family

    def _own(self, models: list[_Shown], asked: list[_Shown]) -> Iterator[Metric]:
        for part, triton_part in _OWN_LATENCIES.items():
            name = f"modelrail_inference_{part}_duration_seconds"
            text, latency = _LATENCIES[triton_part]
            yield _latencies(name, text, asked, latency, _SECONDS)
        yield _batch_sizes(asked)
        yield _numbers(
            "modelrail_inference_in_flight",
            "Requests that came in and have no answer yet",
            "gauge",
            models,
            lambda s: s.in_flight,
        )
        yield _by_reason(
            "modelrail_inference_refused_total",
            "Requests that were not let in, or whose replies were too large, by reason",
            models,
            Refusal,
            lambda s: s.refusals,
        )
        yield _numbers(
            "modelrail_inference_expired_total",
            "Requests whose time ran out before a session took them",
            "counter",
            models,
            lambda s: s.expired_count,
        )
        yield _numbers(
            "modelrail_inference_run_expired_total",
            "Requests whose deadline passed after a session had taken them",
            "counter",
            models,
            lambda s: s.run_expired_count,
        )
        yield _numbers(
            "modelrail_inference_cancelled_total",
            "Requests whose callers went away before the answer",
            "counter",
            models,
            lambda s: s.failures[Failure.CANCELED],
        )
        yield _facts(
            "modelrail_inference_loaded_file_bytes",
            "Size of the version's files; what a session holds in memory depends on its runs",
            models,
            lambda m: m.file_bytes,
        )
        name = "modelrail_inference_provider_info"
        yield WrittenMetric(
            name,
            "Execution provider that runs the version; always 1",
            "gauge",
            [
                f"{name}{{{m.labels},{label('provider', m.model.provider.value)}}} 1\n"
                for m in models
            ],
        )
        yield GaugeMetricFamily(
            "modelrail_inference_loaded_versions", "Versions that take requests", value=len(models)
        )


def _shown(model: LoadedModel) -> _Shown:
    labels = f"{label('model', model.model)},{label('version', str(model.number))}"
    return _Shown(model, model.statistics, labels)


def _numbers(name: str, text: str, kind: str, models: list[_Shown], number: _Number) -> Metric:
    lines = [f"{name}{{{m.labels}}} {number(m.statistics)}\n" for m in models]
    return WrittenMetric(name, text, kind, lines)


def _facts(
    name: str, text: str, models: list[_Shown], number: Callable[[LoadedModel], float]
) -> Metric:
    lines = [f"{name}{{{m.labels}}} {number(m.model)}\n" for m in models]
    return WrittenMetric(name, text, "gauge", lines)


def _by_reason(
    name: str,
    text: str,
    models: list[_Shown],
    reasons: type[Failure] | type[Refusal],
    counts: Callable[[Statistics], dict[Failure, int] | dict[Refusal, int]],
) -> Metric:
    shown = [(reason, f',reason="{reason.value}"}} ') for reason in reasons]
    lines = []
    for m in models:
        start, numbers = f"{name}{{{m.labels}", counts(m.statistics)
        lines += [f"{start}{end}{numbers[reason]}\n" for reason, end in shown]  # type: ignore[index]
    return WrittenMetric(name, text, "counter", lines)


def _latencies(
    name: str,
    text: str,
    models: list[_Shown],
    latency: Callable[[Statistics], Latency],
    unit: _Unit,
) -> Metric:
    lines: list[str] = []
    for m in models:
        numbers = latency(m.statistics)
        lines += _histogram(name, m.labels, unit.edges, list(numbers.buckets), numbers.ns / unit.ns)
    return WrittenMetric(name, f"{unit.word} {text}", "histogram", lines)


def _batch_sizes(models: list[_Shown]) -> Metric:
    name, lines = "modelrail_inference_batch_size", list[str]()
    for m in models:
        buckets, items = m.statistics.batch_size_buckets()
        lines += _histogram(name, m.labels, _EDGES_ITEMS, buckets, items)
    return WrittenMetric(name, "Items in a run of the model", "histogram", lines)


def _histogram(
    name: str, labels: str, edges: tuple[str, ...], buckets: list[int], total: float
) -> Iterator[str]:
    """Yields the lines of one histogram; the count is the sum of the buckets that were read."""
    start, count = f'{name}_bucket{{{labels},le="', 0
    for edge, count in zip(edges, accumulate(buckets), strict=True):
        yield f'{start}{edge}"}} {count}\n'
    yield f"{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {count}\n"
