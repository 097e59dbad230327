"""What a model version counts, and what a scrape shows of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from modelrail_inference.metrics import InferenceCollector
from modelrail_inference.model.definition import LoadedModel, VersionDefinition
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature
from modelrail_inference.repository.repository import Repository
from modelrail_inference.statistics import (
    LATENCY_EDGES_US,
    Duration,
    Failure,
    Refusal,
    Statistics,
)
from modelrail_server.observability.exposition import render

MILLISECOND = 1_000_000


class Loader:
    """Loads nothing at once."""

    def load(self, definition: VersionDefinition) -> LoadedModel:
        return LoadedModel(
            definition.model,
            definition.number,
            Signature((), ()),
            0,
            Provider.CPU,
            session=None,
            file_bytes=1234,
        )


async def loaded(*names: str) -> Repository:
    repository = Repository(Loader())
    for name in names:
        await repository.reconcile(name, [definition(name)])
    return repository


def definition(name: str, fingerprint: str = "f") -> VersionDefinition:
    return VersionDefinition(name, 1, Path("x"), fingerprint)


def shown(repository: Repository) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(InferenceCollector(repository))
    return registry


def scraped(registry: CollectorRegistry) -> dict[str, Metric]:
    """The families of a scrape, as prometheus-client's own parser understands the text."""
    return {m.name: m for m in text_string_to_metric_families(render(registry).decode())}


def answer(statistics: Statistics, total_ns: int, queue_ns: int = 0, items: int = 1) -> None:
    statistics.executed(items, 1, 2, 3)
    statistics.answered(
        items, queue_ns=queue_ns, input_ns=1, infer_ns=2, output_ns=3, total_ns=total_ns
    )


def test_every_duration_of_answered_requests_has_the_same_count() -> None:
    statistics = Statistics()
    statistics.executed(4, 10, 20, 30)
    for _ in range(2):  # two requests of two items, in one batch
        statistics.answered(2, queue_ns=5, input_ns=10, infer_ns=20, output_ns=30, total_ns=70)
    assert (statistics.inference_count, statistics.execution_count) == (4, 1)
    assert statistics.success == Duration(2, 140)
    assert statistics.queue == Duration(2, 10)
    assert statistics.compute_input == Duration(2, 20)
    assert statistics.compute_infer == Duration(2, 40)
    assert statistics.compute_output == Duration(2, 60)
    batch = statistics.batches[4]
    assert (batch.compute_input, batch.compute_infer) == (Duration(1, 10), Duration(1, 20))
    assert batch.compute_output == Duration(1, 30)


def test_refused_expired_and_cancelled_requests_are_failures_in_tritons_words() -> None:
    statistics = Statistics()
    for refusal in Refusal:
        statistics.refused(refusal, 5)
    statistics.expired(7)
    statistics.expired(8, ran=True)
    statistics.cancelled(9)
    statistics.failed(Failure.BACKEND, 11)
    assert statistics.refusals == dict.fromkeys(Refusal, 1)
    assert statistics.failures == {
        Failure.REJECTED: len(Refusal) + 2,
        Failure.CANCELED: 1,
        Failure.BACKEND: 1,
        Failure.OTHER: 0,
    }
    assert (statistics.expired_count, statistics.run_expired_count) == (1, 1)
    assert statistics.fail == Duration(len(Refusal) + 4, 5 * len(Refusal) + 35)


async def test_a_reload_in_place_goes_on_counting_and_an_unload_begins_anew() -> None:
    repository = await loaded("m")
    used = repository.acquire("m", "")
    before = used.model.statistics
    answer(before, MILLISECOND)
    await repository.reconcile("m", [definition("m", "changed")])
    after = next(repository.serving())
    assert after is not used.model
    assert after.statistics is before
    used.release()
    await repository.reconcile("m", [])
    await repository.reconcile("m", [definition("m")])
    assert next(repository.serving()).statistics.success_count == 0


async def test_a_histogram_is_what_prometheus_client_makes_of_the_same_requests() -> None:
    repository = await loaded("m")
    statistics = next(repository.serving()).statistics
    ours = shown(repository)
    theirs = CollectorRegistry()
    histogram = Histogram(
        "modelrail_inference_request_duration_seconds",
        "",
        ("model", "version"),
        buckets=[edge / 1e6 for edge in LATENCY_EDGES_US],
        registry=theirs,
    ).labels("m", "1")
    generator = random.Random(3)  # noqa: S311 (a seed, no secret)
    edges = [edge * 1000 for edge in LATENCY_EDGES_US]  # a bucket holds its own edge
    for total_ns in [*edges, *(generator.randrange(1, 20_000_000_000) for _ in range(500))]:
        answer(statistics, total_ns)
        histogram.observe(total_ns / 1e9)
    name = "modelrail_inference_request_duration_seconds"
    found = {(s.name, float(s.labels.get("le", 0))): s.value for s in scraped(ours)[name].samples}
    (expected,) = theirs.collect()
    for sample in expected.samples:
        if not sample.name.endswith("_created"):
            value = found.pop((sample.name, float(sample.labels.get("le", 0))))
            assert value == pytest.approx(sample.value), sample
    assert found == {}


async def test_tritons_names_are_written_as_triton_writes_them() -> None:
    repository = await loaded("m")
    statistics = next(repository.serving()).statistics
    answer(statistics, 3 * MILLISECOND, queue_ns=MILLISECOND, items=2)
    statistics.failed(Failure.OTHER, 1)
    lines = set(render(shown(repository)).decode().splitlines())
    assert {
        "# TYPE nv_inference_request_success counter",
        'nv_inference_request_success{model="m",version="1"} 1',
        'nv_inference_count{model="m",version="1"} 2',
        'nv_inference_exec_count{model="m",version="1"} 1',
        'nv_inference_request_duration_us{model="m",version="1"} 3000',
        'nv_inference_queue_duration_us{model="m",version="1"} 1000',
        'nv_inference_request_failure{model="m",version="1",reason="OTHER"} 1',
        'nv_inference_request_failure{model="m",version="1",reason="REJECTED"} 0',
        'nv_inference_pending_request_count{model="m",version="1"} 0',
        'nv_inference_request_duration_histogram_us_bucket{model="m",version="1",le="2500"} 0',
        'nv_inference_request_duration_histogram_us_bucket{model="m",version="1",le="5000"} 1',
        'nv_inference_queue_duration_histogram_us_bucket{model="m",version="1",le="1000"} 1',
        'nv_inference_compute_infer_duration_histogram_us_count{model="m",version="1"} 1',
        'modelrail_inference_batch_size_bucket{model="m",version="1",le="1"} 0',
        'modelrail_inference_batch_size_bucket{model="m",version="1",le="2"} 1',
        'modelrail_inference_batch_size_sum{model="m",version="1"} 2',
        'modelrail_inference_loaded_file_bytes{model="m",version="1"} 1234',
        'modelrail_inference_provider_info{model="m",version="1",provider="cpu"} 1',
    } <= lines
    assert not [line for line in lines if line.startswith("nv_") and "_total{" in line]


async def test_every_reason_of_a_refusal_and_both_kinds_of_late_requests_are_shown() -> None:
    repository = await loaded("m")
    statistics = next(repository.serving()).statistics
    statistics.refused(Refusal.THREAD_LIMIT)
    statistics.expired()
    for _ in range(2):
        statistics.expired(ran=True)
    families = scraped(shown(repository))
    refused = {
        sample.labels["reason"]: sample.value
        for sample in families["modelrail_inference_refused"].samples
    }
    assert refused == {
        "QUEUE_FULL": 0,
        "BYTES_FULL": 0,
        "DEADLINE_UNREACHABLE": 0,
        "TOO_LARGE": 0,
        "REPLY_TOO_LARGE": 0,
        "THREAD_LIMIT": 1,
        "REPLIES_UNREAD": 0,
        "SHUTTING_DOWN": 0,
    }
    assert families["modelrail_inference_expired"].samples[0].value == 1
    assert families["modelrail_inference_run_expired"].samples[0].value == 2
    assert families["modelrail_inference_cancelled"].samples[0].value == 0


async def test_the_machines_cpu_and_memory_are_told() -> None:
    families = scraped(shown(await loaded()))
    total = families["nv_cpu_memory_total_bytes"].samples[0].value
    assert 0 < families["nv_cpu_memory_used_bytes"].samples[0].value < total
    assert 0 <= families["nv_cpu_utilization"].samples[0].value <= 1


async def test_other_encoders_show_the_same_numbers() -> None:
    repository = await loaded("a", "b")
    for model in repository.serving():
        answer(model.statistics, MILLISECOND)
    registry = shown(repository)

    def numbers(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.name.startswith("nv_cpu")
        }

    own = {k: v for k, v in numbers(render(registry).decode()).items() if k[0].startswith("modelr")}
    other = numbers(generate_latest(registry).decode())
    assert own
    assert {k: v for k, v in other.items() if k[0].startswith("modelr")} == own


async def test_names_with_quotes_and_line_ends_stay_in_their_labels() -> None:
    name = 'a"b\\c\nd'
    registry = shown(await loaded(name))
    (sample,) = scraped(registry)["nv_inference_exec_count"].samples
    assert sample.labels == {"model": name, "version": "1"}


async def test_a_version_that_nobody_asked_has_counters_and_no_histograms() -> None:
    families = scraped(shown(await loaded("m")))
    assert families["nv_inference_count"].samples[0].value == 0
    assert families["modelrail_inference_request_duration_seconds"].samples == []
