"""How start, memory and latency grow with workers, with loaded models and with connections.

    python -m tests.load.scale

Each number of workers, models or connections is measured in every round.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.load.connections import ConnectionFigures, allow_open_files
from tests.load.connections import measure as measure_connections
from tests.load.generator import Generator, LoadFigures, Target, is_available, send
from tests.load.models import FOLDER, MODELS
from tests.load.process import Memory, inference_command, inference_flags, running
from tests.load.repository import add_models
from tests.load.request import encode
from tests.load.table import Table, publish, spread

# Connections are spread over the workers that share a port: a few of them reach all workers.
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Grown:
    """One start of the server and its load.

    Attributes:
        ready_seconds: From the start of the first process until everything was loaded.
        processes: How many there were.
        memory: Of all of them, when ready.
        alone: One request at a time.
        busy: As many in flight as asked for.
    """

    ready_seconds: float
    processes: int
    memory: Memory
    alone: LoadFigures
    busy: LoadFigures


class Scale:
    """Measures the server with the tiny model.

    Args:
        options: What the command line says.
        work: A folder for model repositories.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self._options = options
        self._work = work
        self._file = MODELS["mlp"].file(options.folder)
        self._flags = shlex.split(options.server_flags)

    async def grown(self, models: int, *flags: str) -> Grown:
        """Starts the server with so many models and sends to one of them."""
        command = self._command(models, *flags)
        async with running(command, timeout_seconds=600.0) as host:
            memory, processes = host.memory(), host.processes()
            target = Target(host, "mlp-0", self._body(), {})
            alone = await self._send(target, 1)
            busy = await self._send(target, self._options.concurrency)
            return Grown(host.ready_seconds, processes, memory, alone, busy)

    async def connected(self, counts: Sequence[int]) -> list[ConnectionFigures]:
        """Starts the server once, and connects so many times, one count after the other."""
        # Beside those that are measured there are the ones that ask for readiness.
        limit = str(max(counts) + 10)
        async with running(self._command(1, "--max-connections", limit)) as host:
            target = Target(host, "mlp-0", self._body(), {})
            return [
                await measure_connections(
                    target,
                    count,
                    concurrency=self._options.concurrency,
                    seconds=self._options.seconds,
                )
                for count in counts
            ]

    def _command(self, models: int, *flags: str) -> list[str]:
        repository = self._work / f"{models}-models"
        if not repository.exists():
            add_models(repository, (f"mlp-{index}" for index in range(models)), self._file)
        return inference_command("--model-repository", str(repository), *self._flags, *flags)

    def _body(self) -> bytes:
        return encode("mlp-0", MODELS["mlp"].inputs(1, np.random.default_rng(0)))

    async def _send(self, target: Target, concurrency: int) -> LoadFigures:
        return await send(
            self._options.generator,
            target,
            concurrency=concurrency,
            streaming=False,
            seconds=self._options.seconds,
            connections=min(concurrency, _CONNECTIONS),
        )


def grown_table(title: str, what: str, found: dict[int, list[Grown]], concurrency: int) -> Table:
    """Returns a row for each number of workers or models."""
    table = Table(
        title,
        (
            what, "ready s", "processes", "resident MB", "proportional MB", "p50 ms, 1 in flight",
            f"requests/s, {concurrency} in flight", "p99 ms", "CPU ms/request",
        ),
    )  # fmt: skip
    for count, grown in found.items():
        table.add(
            count,
            spread([one.ready_seconds for one in grown]),
            max(one.processes for one in grown),
            spread([one.memory.resident_bytes / 1e6 for one in grown], 1),
            spread([one.memory.proportional_bytes / 1e6 for one in grown], 1),
            spread([one.alone.p50_seconds * 1e3 for one in grown]),
            spread([one.busy.requests_per_second for one in grown], 0),
            spread([one.busy.p99_seconds * 1e3 for one in grown]),
            spread([one.busy.cpu_seconds_per_request * 1e3 for one in grown], 3),
        )
    return table


def connections_table(found: dict[int, list[ConnectionFigures]], concurrency: int) -> Table:
    """Returns a row for each number of connections."""
    table = Table(
        f"connections, {concurrency} requests in flight over all of them",
        ("connections", "resident MB", "requests/s", "p50 ms", "p99 ms"),
    )
    for count, figures in found.items():
        table.add(
            count,
            spread([one.memory.resident_bytes / 1e6 for one in figures], 1),
            spread([one.requests_per_second for one in figures], 0),
            spread([one.p50_seconds * 1e3 for one in figures]),
            spread([one.p99_seconds * 1e3 for one in figures]),
        )
    return table


async def measure(options: argparse.Namespace) -> tuple[list[Table], dict[str, Any]]:
    """Measures what is asked for, and returns tables and every single figure."""
    workers: defaultdict[int, list[Grown]] = defaultdict(list)
    models: defaultdict[int, list[Grown]] = defaultdict(list)
    connections: defaultdict[int, list[ConnectionFigures]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as work:
        scale = Scale(options, Path(work))
        for _ in range(options.rounds):
            for count in options.workers:
                workers[count].append(await scale.grown(1, "--workers", str(count)))
            for count in options.models:
                models[count].append(await scale.grown(count))
            if options.connections:
                for figures in await scale.connected(options.connections):
                    connections[figures.connections].append(figures)
    tables = []
    if workers:
        tables.append(grown_table("workers", "workers", workers, options.concurrency))
    if models:
        tables.append(grown_table("loaded models", "models", models, options.concurrency))
    if connections:
        tables.append(connections_table(connections, options.concurrency))
    return tables, {
        "workers": _to_json(workers),
        "models": _to_json(models),
        "connections": _to_json(connections),
    }


def _to_json(found: Mapping[int, Sequence[Grown | ConnectionFigures]]) -> dict[str, Any]:
    return {str(count): [asdict(one) for one in rounds] for count, rounds in found.items()}


def main() -> None:
    """Measures growth."""
    parser = argparse.ArgumentParser(
        description="How start, memory and latency grow with workers, models and connections."
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--generator", type=Generator, choices=Generator, default="modelrail")
    parser.add_argument("--workers", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--models", type=int, nargs="*", default=(1, 10, 100, 1000))
    parser.add_argument("--connections", type=int, nargs="*", default=(1, 10, 100, 1000))
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure of a round")
    parser.add_argument("--server-flags", default="", help="more flags for the server, as one text")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if not is_available(options.generator):
        parser.error("--generator h2load: not found; it is in Debian's package nghttp2-client")
    if options.quick:
        options.rounds, options.seconds = 1, 0.2
        options.models, options.connections, options.concurrency = [1, 3], [1, 20], 8
    if options.workers and "--workers" not in inference_flags():
        print("skipped: workers; this server has no flag --workers")
        options.workers = []
    allow_open_files()
    tables, figures = asyncio.run(measure(options))
    publish(tables, figures, options.json)


if __name__ == "__main__":
    main()
