"""Whether a thousand queued jobs, listed and watched, slow down the one that runs.

    python -m tests.load.job_queue

Quiet spells and busy ones take turns while one job trains. In a busy spell the whole list is read
page by page, once a second, and every watcher has a stream open on the running job. The job itself
tells how fast it was, epoch by epoch. Watchers and reader run on the same processors, so the ratio
is the worst that a machine of their own would see.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import JOURNAL_NAME, MetricsEvent, read_events
from tests.load.models import FOLDER
from tests.load.table import Table, megabytes, milliseconds, publish, spread
from tests.load.trainer import TrainerHost, digits, trainer, when

_BETWEEN_LISTS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Spell:
    """What was measured while it lasted.

    Attributes:
        busy: Whether the jobs were listed and watched.
        step_seconds: Of the running job, the median over its epochs.
        cpu_share: Processor time of the service for each second.
        resident_bytes: Memory of the service at its end.
        list_seconds: Time of each reading of the whole list.
    """

    busy: bool
    step_seconds: float
    cpu_share: float
    resident_bytes: int
    list_seconds: list[float]


class Queue:
    """A running job before a queue.

    Args:
        host: The trainer.
        running: Name of the job that runs.
        journal: Of that job.
        watchers: How many watch it in busy spells.
    """

    def __init__(self, host: TrainerHost, running: str, journal: Path, watchers: int) -> None:
        self._host = host
        self._running = running
        self._journal = journal
        self._watchers = watchers
        self._offset = 0

    async def spell(self, seconds: float, *, busy: bool) -> Spell:
        """Lets so much time pass and tells what was seen."""
        listed: list[float] = []
        async with self._trouble(listed) if busy else _silence():
            self._steps()  # those before do not count
            started, cpu = time.perf_counter(), self._host.cpu_seconds()
            await asyncio.sleep(seconds)
            spent = self._host.cpu_seconds() - cpu
            share = spent / (time.perf_counter() - started)
            steps = self._steps()
            resident = self._host.service.memory_info().rss
        return Spell(busy, statistics.median(steps), share, resident, listed)

    def _steps(self) -> list[float]:
        """Returns the seconds of a step for each epoch that has ended since the last look."""
        found: list[float] = []
        while True:
            events, offset = read_events(self._journal, self._offset)
            if offset == self._offset:
                return found
            self._offset = offset
            found += [32 / e.rows_per_second for e in events if isinstance(e, MetricsEvent)]

    @asynccontextmanager
    async def _trouble(self, listed: list[float]) -> AsyncIterator[None]:
        async def watch() -> None:
            async for _ in self._host.client.watch_job(self._running):
                pass

        async def read_lists() -> None:
            while True:
                begun = time.perf_counter()
                _ = [job async for job in self._host.client.list_jobs()]
                listed.append(time.perf_counter() - begun)
                await asyncio.sleep(_BETWEEN_LISTS_SECONDS)

        tasks = [asyncio.create_task(watch()) for _ in range(self._watchers)]
        tasks.append(asyncio.create_task(read_lists()))
        try:
            await asyncio.sleep(1.0)  # they first read what was before
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _silence() -> AsyncIterator[None]:
    yield


def _long_job() -> pb.TrainingJobSpec:
    """Returns a job whose epochs take a fifth of a second: each is an event for every watcher."""
    job = digits(100_000)
    job.dataset.CopyFrom(pb.Dataset(line=pb.LineDataset(slope=0.5, intercept=1.0, points=20_000)))
    job.loss.CopyFrom(pb.Loss(mse=pb.MeanSquaredError()))
    return job


async def measure(options: argparse.Namespace, folder: Path) -> tuple[list[Spell], list[float]]:
    """Returns the spells in order, and the times of the calls that queued the jobs."""
    flags = ("--max-queued-jobs", str(2 * options.jobs))
    async with trainer(folder, *flags) as host:
        running = await host.client.create_job(_long_job())
        journal = host.directory(running) / JOURNAL_NAME
        await when(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 10)
        created = []
        for _ in range(options.jobs):
            begun = time.perf_counter()
            await host.client.create_job(digits(1))
            created.append(time.perf_counter() - begun)
        queue = Queue(host, running.name, journal, options.watchers)
        spells = []
        for _ in range(options.rounds):
            spells.append(await queue.spell(options.seconds, busy=False))
            spells.append(await queue.spell(options.seconds, busy=True))
        await host.client.cancel_job(running.name)
    return spells, created


def tables(spells: list[Spell], created: list[float], options: argparse.Namespace) -> list[Table]:
    """Returns the spells side by side."""
    quiet = [spell for spell in spells if not spell.busy]
    busy = [spell for spell in spells if spell.busy]
    table = Table(
        f"one job trains before {options.jobs} queued ones",
        ("", "step µs", "service CPU s/s", "service resident MB", "whole list ms"),
    )
    for name, found in (("quiet", quiet), (f"listed, {options.watchers} watchers", busy)):
        lists = [seconds * 1e3 for spell in found for seconds in spell.list_seconds]
        table.add(
            name,
            spread([spell.step_seconds * 1e6 for spell in found], 0),
            spread([spell.cpu_share for spell in found]),
            megabytes(statistics.median(spell.resident_bytes for spell in found)),
            spread(lists, 0) if lists else "",
        )
    compared = Table("comparisons", ("ratio", "value"))
    slower = [b.step_seconds / q.step_seconds for q, b in zip(quiet, busy, strict=True)]
    compared.add("step beside listing and watching / quiet", spread(slower))
    calls = Table("queueing a job", ("jobs", "p50 ms", "longest ms"))
    calls.add(len(created), milliseconds(statistics.median(created)), milliseconds(max(created)))
    return [table, compared, calls]


def main() -> None:
    """Measures the queue."""
    parser = argparse.ArgumentParser(description="A running job before a long queue.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a spell")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.watchers, options.rounds, options.seconds = 20, 5, 1, 2.0
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as work:
        spells, created = asyncio.run(measure(options, Path(work)))
    figures: dict[str, Any] = {"spells": [asdict(spell) for spell in spells], "created": created}
    publish(tables(spells, created, options), figures, options.json)


if __name__ == "__main__":
    main()
