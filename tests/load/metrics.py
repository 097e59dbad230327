"""What metrics cost: counting one request, and one scrape of many models.

    python -m tests.load.metrics
    python -m tests.load.metrics --models 10 1000

Counting is timed in a loop, with warm caches; among other work it costs more. A scrape is a GET
over loopback of a server in this process. Requests are answered meanwhile, but share the
interpreter's lock with the text, whose time is told apart. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import timeit
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram

from modelrail_inference.metrics import InferenceCollector
from modelrail_inference.model.definition import LoadedModel, VersionDefinition
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature
from modelrail_inference.repository.repository import Repository
from modelrail_inference.statistics import Statistics
from modelrail_server.address import Address
from modelrail_server.observability.exposition import render
from modelrail_server.observability.metrics import ServerMetrics
from modelrail_server.observability.scrape import MetricsServer
from tests.load.table import Table, megabytes, milliseconds, publish, spread

_LOOPS = 100_000
_REPEATS = 5
_SCRAPES = 7
_SECONDS = 0.003


class Loader:
    """Loads models that have no session: nobody runs them here."""

    def load(self, definition: VersionDefinition) -> LoadedModel:
        return LoadedModel(
            definition.model, definition.number, Signature((), ()), 0, Provider.CPU, session=None
        )


def microseconds(work: Callable[[], object]) -> list[float]:
    """Times one call of `work`, several times over."""
    return [s / _LOOPS * 1e6 for s in timeit.repeat(work, number=_LOOPS, repeat=_REPEATS)]


def count(counters: Statistics) -> None:
    """Counts a request that ran alone."""
    counters.executed(1, 5_000, 2_000_000, 4_000)
    counters.answered(
        1, queue_ns=30_000, input_ns=5_000, infer_ns=2_000_000, output_ns=4_000, total_ns=2_100_000
    )


def counting() -> Table:
    """Measures what one request adds."""
    table = Table("Counting one request", ("counters", "µs"))
    method = ServerMetrics(CollectorRegistry()).method("/a.B/C")

    def rpc() -> None:
        method.started += 1
        method.handled("OK", _SECONDS)

    counters = Statistics()
    labels = ("service", "method")
    started, handled = (Counter(name, "", labels, registry=None).labels("a", "b") for name in "xy")
    seconds = Histogram("z", "", labels, registry=None).labels("a", "b")

    def library() -> None:
        started.inc()
        handled.inc()
        seconds.observe(_SECONDS)

    table.add("the RPC: started, ended, latency", spread(microseconds(rpc)))
    table.add(
        "the same by prometheus-client, labels looked up before", spread(microseconds(library))
    )
    table.add("the model: its run and its answer", spread(microseconds(lambda: count(counters))))
    return table


async def filled(models: int, asked: int) -> CollectorRegistry:
    """Returns the metrics of a server with so many models, of which some were asked."""
    repository = Repository(Loader())
    for number in range(models):
        name = f"model-{number:05}"
        await repository.reconcile(name, [VersionDefinition(name, 1, Path("unused"), "f")])
    for model in list(repository.serving())[:asked]:
        count(model.statistics)
    registry = CollectorRegistry()
    ServerMetrics(registry)
    registry.register(InferenceCollector(repository))
    return registry


def scraping(registry: CollectorRegistry) -> tuple[list[float], list[float], bytes]:
    """Returns the seconds of scrapes, those of their text alone, and the text."""
    server = MetricsServer(Address.parse("127.0.0.1:0"), registry)
    try:

        def get() -> None:
            with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=60) as reply:
                reply.read()

        scrapes = timeit.repeat(get, number=1, repeat=_SCRAPES)
    finally:
        server.close()
    texts = timeit.repeat(lambda: render(registry), number=1, repeat=_SCRAPES)
    return scrapes, texts, render(registry)


async def scrapes(sizes: list[int]) -> Table:
    """Measures scrapes of servers with few and many models."""
    columns = (
        "models",
        "asked",
        "series",
        "MB",
        "scrape, ms",
        "text, ms",
    )
    table = Table("One scrape", columns)
    for models in sizes:
        for asked in dict.fromkeys((0, models // 10, models)):
            registry = await filled(models, asked)
            whole, text, body = scraping(registry)
            series = sum(not line.startswith(b"#") for line in body.splitlines())
            table.add(
                models,
                asked,
                series,
                megabytes(len(body)),
                milliseconds(statistics.median(whole)),
                milliseconds(statistics.median(text)),
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--json", type=Path, help="file for the tables")
    arguments = parser.parse_args()
    tables = [counting(), asyncio.run(scrapes(arguments.models))]
    publish(tables, None, arguments.json)


if __name__ == "__main__":
    main()
