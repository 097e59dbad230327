"""Good requests with cancels and mistakes among them, as many as wanted."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from modelrail.client import Connection
from modelrail.client.channel import open_channel

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_TIMEOUT_SECONDS = 30.0
_LONGEST_BEFORE_CANCEL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request.

    Attributes:
        name: What it is called in the result.
        weight: How often it comes, relative to the others.
        body: A ModelInferRequest.
        cancelled: Whether the caller gives up soon after sending it.
    """

    name: str
    weight: float
    body: bytes
    cancelled: bool = False


async def send_mixture(
    address: str,
    kinds: Sequence[Kind],
    *,
    requests: int,
    concurrency: int,
    progress: Callable[[int], None],
) -> Counter[tuple[str, str]]:
    """Sends so many requests in a closed loop and counts kinds with their status codes.

    Args:
        address: The server.
        kinds: What is sent, at random.
        requests: How many.
        concurrency: Requests in flight.
        progress: Told after each request how many were answered.
    """
    outcomes: Counter[tuple[str, str]] = Counter()
    remaining = iter(range(requests))
    weights = [kind.weight for kind in kinds]
    async with open_channel(Connection(address=address)) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)

        async def caller(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
            for _ in remaining:
                (kind,) = chance.choices(kinds, weights)
                wait = chance.uniform(0, _LONGEST_BEFORE_CANCEL_SECONDS) if kind.cancelled else None
                outcomes[kind.name, await _send(call, kind.body, wait)] += 1
                progress(outcomes.total())

        async with asyncio.TaskGroup() as callers:
            for seed in range(concurrency):
                callers.create_task(caller(seed))
    return outcomes


async def _send(
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], body: bytes, cancel_after: float | None
) -> str:
    """Returns the status code of one request; a cancelled one can be answered before."""
    sent = call(body, timeout=_TIMEOUT_SECONDS)
    if cancel_after is not None:
        await asyncio.sleep(cancel_after)
        sent.cancel()
    return (await sent.code()).name
