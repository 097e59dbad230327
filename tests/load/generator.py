"""Load for a host, from one of two programs, in the same figures.

`modelrail` is the load generator of `modelrail bench`: unary and streaming, and every answer is
checked. `h2load` (Debian's package nghttp2-client) is written in C: beside a server on the same two
processors it takes less of what is measured. It sends one recorded request all the time, unary
only, and does not look into answers: those are checked by the server's own count.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from modelrail.bench import BenchPlan, ClosedLoop, run_bench
from modelrail.client import AsyncInferenceClient, Connection
from modelrail.client.errors import Unimplemented
from tests.load.process import Host

# A connection carries at most as many calls at a time, in both programs.
_CALLS_PER_CONNECTION = 32
_H2LOAD_THREADS = 1


class LoadFailed(Exception):
    """Requests failed, so the figures mean nothing; the message says how many and how."""


class Generator(StrEnum):
    """The program that sends."""

    MODELRAIL = "modelrail"
    H2LOAD = "h2load"


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What one run of a closed loop found.

    Attributes:
        requests_per_second: Good answers in a second.
        p50_seconds: Median latency.
        p99_seconds: Latency that one in a hundred exceeds.
        cpu_seconds_per_request: Processor time of the host's processes for a request.
        mean_batch_size: Items in a run of the model; None where the host does not say.
        client_limited: Whether the generator itself was the limit, as far as it can tell.
    """

    requests_per_second: float
    p50_seconds: float
    p99_seconds: float
    cpu_seconds_per_request: float
    mean_batch_size: float | None
    client_limited: bool


@dataclass(frozen=True, slots=True)
class Target:
    """A model on a host.

    Attributes:
        host: The running process.
        model: Name of the model.
        body: A ModelInferRequest for it, for generators that send one recorded request.
        ranges: Where random numbers lie, by input.
    """

    host: Host
    model: str
    body: bytes
    ranges: Mapping[str, tuple[float, float]]


def is_available(generator: Generator) -> bool:
    """Whether the program is installed."""
    return generator is Generator.MODELRAIL or shutil.which("h2load") is not None


async def send(
    generator: Generator, target: Target, *, concurrency: int, streaming: bool, seconds: float
) -> LoadFigures:
    """Runs a closed loop for so many seconds, after a fifth of that as warm-up.

    Raises:
        LoadFailed: A request failed.
        ValueError: h2load was asked for streams.
    """
    if generator is Generator.H2LOAD:
        if streaming:
            raise ValueError("streaming: expected false for h2load, got true")
        await _h2load(target, concurrency, seconds / 5)
        return await _h2load(target, concurrency, seconds)
    await _modelrail(target, concurrency, streaming, seconds / 5)
    return await _modelrail(target, concurrency, streaming, seconds)


async def _modelrail(
    target: Target, concurrency: int, streaming: bool, seconds: float
) -> LoadFigures:
    plan = BenchPlan(
        connection=Connection(address=target.host.address),
        model=target.model,
        load=ClosedLoop(concurrency),
        streaming=streaming,
        ranges=target.ranges,
        # Everything that is sent is counted, so that processor time can be told per request.
        warm_up_seconds=0.0,
        duration_seconds=seconds,
        timeout_seconds=60.0,
    )
    cpu = target.host.cpu_seconds()
    report = await run_bench(plan)
    cpu = target.host.cpu_seconds() - cpu
    if report.errors or report.latency is None:
        raise LoadFailed(f"{dict(report.errors)} {dict(report.error_examples)}")
    figures = report.server_figures
    return LoadFigures(
        requests_per_second=report.requests_per_second,
        p50_seconds=report.latency.p50_seconds,
        p99_seconds=report.latency.p99_seconds,
        cpu_seconds_per_request=cpu / report.succeeded,
        mean_batch_size=figures.mean_batch_size if figures else None,
        client_limited=bool(report.warnings),
    )


async def _h2load(target: Target, concurrency: int, seconds: float) -> LoadFigures:
    connections = -(-concurrency // _CALLS_PER_CONNECTION)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-") as work:
        body, log = Path(work) / "body", Path(work) / "log"
        # A gRPC message: not compressed, its length, its bytes.
        body.write_bytes(struct.pack(">BI", 0, len(target.body)) + target.body)
        before = await _counts(target)
        cpu = target.host.cpu_seconds()
        process = await asyncio.create_subprocess_exec(
            "h2load",
            *("-t", str(_H2LOAD_THREADS), "-c", str(connections)),
            *("-m", str(concurrency // connections), "-D", f"{seconds:g}", "-d", str(body)),
            *("-H", "te: trailers", "-H", "content-type: application/grpc"),
            f"--log-file={log}",
            f"http://{target.host.address}/inference.GRPCInferenceService/ModelInfer",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        cpu = target.host.cpu_seconds() - cpu
        after = await _counts(target)
        return _h2load_figures(output.decode(), log.read_text(), cpu, before, after)


@dataclass(frozen=True, slots=True)
class _Counts:
    """The server's own counters of a model."""

    succeeded: int
    failed: int
    items: int
    executions: int


async def _counts(target: Target) -> _Counts | None:
    async with AsyncInferenceClient(target.host.address) as client:
        try:
            statistics = await client.statistics(target.model)
        except Unimplemented:
            return None
    models = statistics.model_stats
    return _Counts(
        succeeded=sum(one.inference_stats.success.count for one in models),
        failed=sum(one.inference_stats.fail.count for one in models),
        items=sum(one.inference_count for one in models),
        executions=sum(one.execution_count for one in models),
    )


def _h2load_figures(
    output: str, log: str, cpu_seconds: float, before: _Counts | None, after: _Counts | None
) -> LoadFigures:
    """Reads what h2load printed and logged: start in µs, HTTP status, duration in µs a line."""
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", output)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", output)
    if rate is None or counts is None:
        raise LoadFailed(f"h2load: {output[-500:]}")
    succeeded, failed, errored = map(int, counts.groups())
    durations = np.array([int(line.split()[2]) for line in log.splitlines()], dtype=float)
    if failed or errored or not succeeded or not durations.size:
        raise LoadFailed(f"h2load: {counts[0]}")
    mean_batch_size = None
    if before is not None and after is not None:
        # Each of them is HTTP status 200 to h2load, also what gRPC calls an error.
        if after.failed > before.failed or after.succeeded - before.succeeded < succeeded:
            raise LoadFailed(f"h2load got {succeeded} answers; the server: {before} to {after}")
        mean_batch_size = (after.items - before.items) / (after.executions - before.executions)
    p50, p99 = np.quantile(durations, (0.5, 0.99)) / 1e6
    return LoadFigures(
        requests_per_second=float(rate[1]),
        p50_seconds=float(p50),
        p99_seconds=float(p99),
        cpu_seconds_per_request=cpu_seconds / succeeded,
        mean_batch_size=mean_batch_size,
        client_limited=False,
    )
