"""How long the trainer's clients wait for an answer while a job misbehaves.

    python -m tests.load.neighbours

A job of each bad kind runs in turn with one that only waits. Meanwhile a caller asks for the job,
over and over; its p99 with the bad job stands beside that with the quiet one, which was measured
just before. The one that takes memory runs into its limit again and again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import JOURNAL_NAME
from tests.load.bad_job import KINDS, QUIET
from tests.load.models import FOLDER
from tests.load.table import Table, publish, spread
from tests.load.trainer import TrainerHost, digits, trainer, when

_COMMAND = (sys.executable, "-m", "tests.load.scripted_trainer", "tests.load.bad_job")
_BETWEEN_CALLS_SECONDS = 0.005
_MEMORY_BYTES = 256 << 20

Figures = dict[str, list[list[float]]]


async def latencies(host: TrainerHost, kind: str, seconds: float) -> list[float]:
    """Returns the times of the calls that were made beside a job of a kind."""
    spec = digits(1)
    spec.display_name = kind
    job = await host.client.create_job(spec)
    journal = host.directory(job) / JOURNAL_NAME
    await when(lambda: journal.exists() and b"running" in journal.read_bytes().lower())
    found = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        current = await host.client.get_job(job.name)
        if current.state not in (pb.TrainingJob.STATE_PREPARING, pb.TrainingJob.STATE_RUNNING):
            raise SystemExit(f"the job that {kind} has ended: {current.error.message}")
        found.append(time.perf_counter() - begun)
        await asyncio.sleep(_BETWEEN_CALLS_SECONDS)
    await host.client.cancel_job(job.name)
    async for _ in host.client.watch_job(job.name):
        pass
    return found


async def measure(options: argparse.Namespace, folder: Path) -> tuple[Figures, Figures]:
    """Returns by kind the latencies of each round: beside the bad job and the quiet one."""
    bad: Figures = defaultdict(list)
    quiet: Figures = defaultdict(list)
    # Output is not to end the job while it is measured.
    flags = ("--max-job-log-bytes", "0", "--max-job-memory-bytes", str(_MEMORY_BYTES))
    async with trainer(folder, *flags, command=_COMMAND) as host:
        for _ in range(options.rounds):
            for kind in KINDS:
                quiet[kind].append(await latencies(host, QUIET, options.seconds))
                bad[kind].append(await latencies(host, kind, options.seconds))
    return bad, quiet


def tables(bad: Figures, quiet: Figures) -> list[Table]:
    """Returns a row for each kind of job."""
    table = Table(
        "GetTrainingJob beside a job that misbehaves",
        ("the job", "quiet p99 ms", "p50 ms", "p99 ms", "p99 / quiet p99"),
    )
    for kind in KINDS:
        before = [_milliseconds(times, 99) for times in quiet[kind]]
        after = [_milliseconds(times, 99) for times in bad[kind]]
        table.add(
            kind,
            spread(before),
            spread([_milliseconds(times, 50) for times in bad[kind]]),
            spread(after),
            spread([one / other for one, other in zip(after, before, strict=True)]),
        )
    return [table]


def _milliseconds(times: list[float], percent: float) -> float:
    return float(np.percentile(times, percent)) * 1e3


def main() -> None:
    """Measures the answers."""
    parser = argparse.ArgumentParser(description="The trainer's answers beside a bad job.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure of a round")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as work:
        bad, quiet = asyncio.run(measure(options, Path(work)))
    publish(tables(bad, quiet), {"bad": bad, "quiet": quiet}, options.json)


if __name__ == "__main__":
    main()
