"""Load for a host, from one of two programs, in the same figures.

`modelrail` is the load generator of `modelrail bench`: unary and streaming, and every answer is
checked. `h2load` (Debian's package nghttp2-client) is written in C: beside a server on the same two
processors it takes less of what is measured. It sends one recorded request all the time, unary
only, and does not look into answers: the server's own count tells whether they were good.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from modelrail.bench import BenchPlan, ClosedLoop, run_bench
from modelrail.client import AsyncInferenceClient, Connection
from tests.load.process import Host

# A connection carries at most as many calls at a time, in both programs.
_CALLS_PER_CONNECTION = 32
_TIMEOUT_SECONDS = 60.0
_WARM_UP = 0.2
"""Warm-up before what is measured, as a share of it."""
_SPENDING = 0.8
"""Share of what is measured during which processor time is counted."""
_LOOK_SECONDS = 0.005


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
        cpu_seconds_per_request: Processor time of the host's processes for a request, in the middle
            of the run.
        mean_batch_size: Items in a run of the model, then; None where the host does not say.
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
    generator: Generator,
    target: Target,
    *,
    concurrency: int,
    streaming: bool,
    seconds: float,
    connections: int | None = None,
) -> LoadFigures:
    """Runs a closed loop for so many seconds, after a fifth of that as warm-up.

    Args:
        generator: The program that sends.
        target: To whom.
        concurrency: Requests in flight.
        streaming: ModelStreamInfer in place of ModelInfer.
        seconds: How long is measured.
        connections: Connections that share them; by default one for each 32 in flight.

    Raises:
        LoadFailed: A request failed.
        ValueError: h2load was asked for streams.
    """
    if generator is Generator.H2LOAD and streaming:
        raise ValueError("streaming: expected false for h2load, got true")
    async with AsyncInferenceClient(target.host.address) as client:
        before = await _counts(client, target)
        ended = asyncio.Event()
        spending = asyncio.create_task(_spending(client, target, before, seconds, ended))
        try:
            if generator is Generator.H2LOAD:
                window = await _h2load(target, concurrency, seconds, connections)
            else:
                window = await _modelrail(target, concurrency, streaming, seconds, connections)
            ended.set()
            cpu, spent = await spending
        finally:
            spending.cancel()
        after = await _counts(client, target)
    # h2load takes every answer for a good one: what gRPC calls an error is HTTP status 200. What is
    # in flight when its time is up it cancels; a server may count that as failed.
    cancelled = concurrency if generator is Generator.H2LOAD else 0
    total = after.since(before)
    if total.failed > cancelled or total.succeeded < window.answers:
        raise LoadFailed(f"{window.answers} answers; the server counts {before} to {after}")
    return LoadFigures(
        requests_per_second=window.requests_per_second,
        p50_seconds=window.p50_seconds,
        p99_seconds=window.p99_seconds,
        cpu_seconds_per_request=cpu / spent.succeeded,
        mean_batch_size=spent.items / spent.executions if spent.executions else None,
        client_limited=window.client_limited,
    )


async def _spending(
    client: AsyncInferenceClient,
    target: Target,
    idle: _Counts,
    seconds: float,
    ended: asyncio.Event,
) -> tuple[float, _Counts]:
    """Returns the host's processor time, and what it counted for it, while all was under way.

    Neither the start of the load nor its end belong to that: when its time is up h2load cancels
    what is in flight, and what ran of it cost time for no answer. Answers come batch by batch, so
    the count is uncertain by a batch of each session.
    """
    while not ended.is_set() and (await _counts(client, target)).succeeded == idle.succeeded:
        await _pause(_LOOK_SECONDS, ended)
    await _pause(seconds * _WARM_UP, ended)
    before, start = await _counts(client, target), await _cpu_seconds(target)
    await _pause(seconds * _SPENDING, ended)
    after, end = await _counts(client, target), await _cpu_seconds(target)
    spent = after.since(before)
    if not spent.succeeded:
        raise LoadFailed(f"nothing was answered within {seconds * _SPENDING:g} s")
    return end - start, spent


async def _pause(seconds: float, ended: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ended.wait()


async def _cpu_seconds(target: Target) -> float:
    # It looks at all processes of the machine, while this one may have to send.
    return await asyncio.to_thread(target.host.cpu_seconds)


@dataclass(frozen=True, slots=True)
class _Window:
    """What a generator saw while it measured."""

    answers: int
    requests_per_second: float
    p50_seconds: float
    p99_seconds: float
    client_limited: bool


@dataclass(frozen=True, slots=True)
class _Counts:
    """The server's own counters of a model."""

    succeeded: int
    failed: int
    items: int
    executions: int

    def since(self, before: _Counts) -> _Counts:
        """Returns what was counted from then on."""
        return _Counts(
            succeeded=self.succeeded - before.succeeded,
            failed=self.failed - before.failed,
            items=self.items - before.items,
            executions=self.executions - before.executions,
        )


async def _counts(client: AsyncInferenceClient, target: Target) -> _Counts:
    models = (await client.statistics(target.model)).model_stats
    return _Counts(
        succeeded=sum(one.inference_stats.success.count for one in models),
        failed=sum(one.inference_stats.fail.count for one in models),
        items=sum(one.inference_count for one in models),
        executions=sum(one.execution_count for one in models),
    )


async def _modelrail(
    target: Target, concurrency: int, streaming: bool, seconds: float, connections: int | None
) -> _Window:
    plan = BenchPlan(
        connection=Connection(address=target.host.address),
        model=target.model,
        load=ClosedLoop(concurrency),
        streaming=streaming,
        ranges=target.ranges,
        warm_up_seconds=seconds * _WARM_UP,
        duration_seconds=seconds,
        timeout_seconds=_TIMEOUT_SECONDS,
        channels=connections,
    )
    report = await run_bench(plan)
    if report.errors or report.latency is None:
        raise LoadFailed(f"{dict(report.errors)} {dict(report.error_examples)}")
    return _Window(
        answers=report.succeeded,
        requests_per_second=report.requests_per_second,
        p50_seconds=report.latency.p50_seconds,
        p99_seconds=report.latency.p99_seconds,
        client_limited=bool(report.warnings),
    )


async def _h2load(
    target: Target, concurrency: int, seconds: float, connections: int | None
) -> _Window:
    connections = connections or -(-concurrency // _CALLS_PER_CONNECTION)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-") as work:
        body, log = Path(work) / "body", Path(work) / "log"
        # A gRPC message: not compressed, its length, its bytes.
        body.write_bytes(struct.pack(">BI", 0, len(target.body)) + target.body)
        process = await asyncio.create_subprocess_exec(
            "h2load",
            *("-t", "1", "-c", str(connections), "-m", str(concurrency // connections)),
            *("-D", _milliseconds(seconds), "--warm-up-time", _milliseconds(seconds * _WARM_UP)),
            *("-d", str(body), "-H", "te: trailers", "-H", "content-type: application/grpc"),
            f"--log-file={log}",
            f"http://{target.host.address}/inference.GRPCInferenceService/ModelInfer",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise LoadFailed(f"h2load: {output.decode()[-500:]}")
        return _h2load_window(output.decode(), log.read_text())


def _milliseconds(seconds: float) -> str:
    """A duration as h2load reads it, which takes whole numbers only."""
    return f"{round(seconds * 1e3)}ms"


def _h2load_window(output: str, log: str) -> _Window:
    """Reads what h2load printed and logged: start in µs, HTTP status, duration in µs a line."""
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", output)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", output)
    if rate is None or counts is None:
        raise LoadFailed(f"h2load: {output[-500:]}")
    succeeded, failed, errored = map(int, counts.groups())
    durations = np.array([int(line.split()[2]) for line in log.splitlines()], dtype=float)
    if failed or errored or not durations.size:
        raise LoadFailed(f"h2load: {counts[0]}")
    p50, p99 = np.quantile(durations, (0.5, 0.99)) / 1e6
    return _Window(
        answers=succeeded,
        requests_per_second=float(rate[1]),
        p50_seconds=float(p50),
        p99_seconds=float(p99),
        # In C, on one thread, it is no limit to a server in Python.
        client_limited=False,
    )
