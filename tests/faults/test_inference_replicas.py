"""Two replicas behind one client: restarted one after the other, and frozen.

Rows 19 and 20 of the acceptance table.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelrail.client import AsyncInferenceClient, Connection, open_channel
from tests.faults.callers import calling
from tests.faults.conftest import Start
from tests.faults.models import counting, doubling
from tests.faults.service import Service, eventually

IN_FLIGHT = 8
ANSWERS = "nv_inference_request_success"

# gRPC measures each connection with pings of its own now and then. One that is on its way finds a
# frozen server sooner than the options under test do.
WITHOUT_LUCK = (("grpc.http2.bdp_probe", 0),)


def address_of(replicas: Sequence[Service]) -> str:
    """What leads to all of them, as the name of a headless service does."""
    return f"ipv4:{','.join(replica.address for replica in replicas)}"


async def shares(replicas: Sequence[Service], calls: int) -> list[float]:
    """Waits for so many calls more; returns how many of them each replica answered."""
    before = [replica.metric(ANSWERS) for replica in replicas]

    def more() -> list[float]:
        return [
            replica.metric(ANSWERS) - already
            for replica, already in zip(replicas, before, strict=True)
        ]

    await eventually(lambda: sum(more()) >= calls)
    return more()


# --- row 19: one after the other, as a rollout does -----------------------------------------------


@pytest.mark.parametrize("seconds_to_start", [0, pytest.param(7, marks=pytest.mark.slow)])
async def test_a_rolling_restart_of_two_replicas_fails_no_call(
    start: Start, tmp_path: Path, seconds_to_start: int
) -> None:
    """However long a replica takes to start, that is how seldom a client looks for it."""
    folders = [tmp_path / "a", tmp_path / "b"]
    replicas = [start(models=(doubling,), folder=folder) for folder in folders]
    async with (
        AsyncInferenceClient(address_of(replicas)) as client,
        calling(client, IN_FLIGHT) as callers,
    ):
        await callers.all_answered(20)
        for number, folder in enumerate(folders):
            stopped = replicas[number]
            assert await asyncio.to_thread(stopped.stop) == 0
            await callers.all_answered(20)
            await asyncio.sleep(seconds_to_start)
            # The next one is stopped as soon as this one is ready, whether the client has found
            # its way back or not.
            replicas[number] = await asyncio.to_thread(
                start, "--grpc-address", stopped.address, models=(doubling,), folder=folder
            )
        for replica in replicas:
            await eventually(lambda replica=replica: replica.metric(ANSWERS) > 0)  # type: ignore[misc]
        answered = await shares(replicas, 400)
        print("answered by each replica afterwards:", answered)
        assert min(answered) > 0.4 * sum(answered)
    assert not callers.failed


# --- row 20: a replica that is there and does nothing ---------------------------------------------


@pytest.mark.parametrize(
    ("flags", "times", "deadline"),
    [
        pytest.param(
            ("--min-ping-interval-seconds", "0.5"),
            {"keepalive_time_seconds": 1.0, "keepalive_timeout_seconds": 0.5},
            {"timeout_seconds": 4.0},
            id="short",
        ),
        pytest.param((), {}, {}, id="as it comes"),
    ],
)
async def test_a_frozen_replica_is_left_out_until_it_goes_on(
    start: Start, flags: tuple[str, ...], times: dict[str, Any], deadline: dict[str, Any]
) -> None:
    replicas = [start(*flags, models=(doubling,)) for _ in range(2)]
    frozen, other = replicas
    connection = Connection(address=address_of(replicas), **times)
    async with (
        open_channel(connection, options=WITHOUT_LUCK) as channel,
        calling(
            AsyncInferenceClient(connection, channel=channel, **deadline), IN_FLIGHT
        ) as callers,
    ):
        await callers.all_answered(20)
        frozen.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        # Of so many calls, half go to the frozen one, for as long as it has its turn.
        await callers.all_answered(20)
        print(f"left out after {time.monotonic() - began:.1f} s, failed: {dict(callers.failed)}")
        assert callers.failed.total() <= 4
        failed = callers.failed.total()
        already = other.metric(ANSWERS)
        # One more each: an answer that was counted already may be on its way still.
        await callers.all_answered(201)
        assert other.metric(ANSWERS) - already >= 200 * IN_FLIGHT
        frozen.process.send_signal(signal.SIGCONT)
        already = frozen.metric(ANSWERS)
        await eventually(lambda: frozen.metric(ANSWERS) > already + IN_FLIGHT)
        answered = await shares(replicas, 400)
        assert min(answered) > 0.4 * sum(answered)
    assert callers.failed.total() == failed


async def test_a_long_run_is_not_taken_for_a_frozen_replica(start: Start) -> None:
    service = start("--min-ping-interval-seconds", "0.2", models=(counting,))
    connection = Connection(
        address=service.address, keepalive_time_seconds=0.5, keepalive_timeout_seconds=1.0
    )
    started = "grpc_server_started_total"
    before = service.metric(started)
    async with AsyncInferenceClient(connection, timeout_seconds=120) as client:
        steps, calls, seconds = 200_000, 0, 0.0
        while seconds < 3:
            began = time.monotonic()
            await client.infer("counting", {"x": np.array(steps)})
            seconds = time.monotonic() - began
            calls, steps = calls + 1, steps * 2
    print(f"a run of {seconds:.1f} s")
    # A connection that is cut repeats its call on the next, where nobody would see it.
    assert service.metric(started) - before == calls
