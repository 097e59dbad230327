"""How requests leave: over several connections, as unary calls or on streams.

Requests are bytes already and answers stay bytes, so that the client costs little more than gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import grpc
import grpc.aio

from modelrail.bench.inputs.request import Payload
from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.reason import reason_of
from modelrail.bench.load.stream import RequestStream
from modelrail.bench.measurement.failure import RequestFailed
from modelrail.client.channel import open_channel

__all__ = ["Send", "open_sender"]

Send = Callable[[int, Payload, float], Awaitable[None]]
"""Sends a request from a slot (0, 1, …) with a deadline in seconds; returns when it is answered.

Raises `RequestFailed` when it is not, or not well. Each slot has at most one request in flight.
"""

_UNARY = "/inference.GRPCInferenceService/ModelInfer"
_CONNECT_SECONDS = 10.0
_OPTIONS = (
    # A retry would hide the first failure, and count its own wait as the server's latency.
    ("grpc.enable_retries", 0),
    # Channels to one address otherwise share one connection.
    ("grpc.use_local_subchannel_pool", 1),
)


@asynccontextmanager
async def open_sender(assignment: Assignment) -> AsyncIterator[Send]:
    """Opens the connections of an assignment, and waits until they stand, if they can.

    Raises:
        OSError: A certificate or key cannot be read.
    """
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(open_channel(assignment.connection, options=_OPTIONS))
            for _ in range(assignment.channels)
        ]
        # A server that cannot be reached now shows as requests that fail.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_SECONDS):
                for channel in channels:
                    await channel.channel_ready()
        metadata = assignment.connection.call_metadata
        if assignment.streams == 0:
            yield _unary(channels, metadata)
            return
        streams = [
            RequestStream(channels[index % len(channels)], metadata)
            for index in range(assignment.streams)
        ]
        for stream in streams:
            stack.push_async_callback(stream.aclose)

        async def send(slot: int, payload: Payload, timeout_seconds: float) -> None:
            await streams[slot % len(streams)].send(payload.body, timeout_seconds)

        yield send


def _unary(channels: list[grpc.aio.Channel], metadata: tuple[tuple[str, str], ...]) -> Send:
    methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
        channel.unary_unary(_UNARY) for channel in channels
    ]

    async def send(slot: int, payload: Payload, timeout_seconds: float) -> None:
        method = methods[slot % len(methods)]
        try:
            await method(payload.body, timeout=timeout_seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(
                error.code().name, error.details() or "", reason_of(error.trailing_metadata())
            ) from None

    return send
