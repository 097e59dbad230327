"""Many connections that share a few requests in flight."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle

import grpc.aio
import numpy as np

from modelrail.client import Connection
from modelrail.client.channel import open_channel
from tests.load.generator import Target
from tests.load.process import Memory

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_TIMEOUT_SECONDS = 60.0
# Channels to one address otherwise share one connection.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)
_OPENED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ConnectionFigures:
    """What a number of connections did.

    Attributes:
        connections: How many were open; each of them carried requests.
        requests_per_second: Over all of them.
        p50_seconds: Median latency.
        p99_seconds: Latency that one in a hundred exceeds.
        memory: Of the host while they were open.
    """

    connections: int
    requests_per_second: float
    p50_seconds: float
    p99_seconds: float
    memory: Memory


def allow_open_files() -> None:
    """Raises this process's limit of open files, one of which each connection takes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def measure(
    target: Target, connections: int, *, concurrency: int, seconds: float
) -> ConnectionFigures:
    """Opens the connections, uses each of them once, then sends over them in turn.

    Raises:
        grpc.RpcError: A request failed.
    """
    async with AsyncExitStack() as stack:
        calls: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = []
        for _ in range(connections):
            channel = open_channel(Connection(address=target.host.address), options=_OPTIONS)
            calls.append((await stack.enter_async_context(channel)).unary_unary(_METHOD))
        gate = asyncio.Semaphore(_OPENED_AT_ONCE)

        async def open_one(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
            async with gate:
                await call(target.body, timeout=_TIMEOUT_SECONDS)

        await asyncio.gather(*(open_one(call) for call in calls))
        turn = cycle(calls)
        durations: list[float] = []
        start = time.perf_counter()

        async def caller() -> None:
            while (before := time.perf_counter()) < start + seconds:
                await next(turn)(target.body, timeout=_TIMEOUT_SECONDS)
                durations.append(time.perf_counter() - before)

        await asyncio.gather(*(caller() for _ in range(concurrency)))
        elapsed = time.perf_counter() - start
        memory = target.host.memory()
    p50, p99 = np.quantile(durations, (0.5, 0.99))
    return ConnectionFigures(connections, len(durations) / elapsed, float(p50), float(p99), memory)
