"""The spare of `modelrail-inference --workers 2`: it takes a seat, dies, hangs and ends."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import psutil
import pytest

from modelrail.oip.v2 import grpc_service_pb2 as pb
from tests.faults.workers import (
    ONE,
    SECONDS,
    Server,
    Start,
    counted,
    ready,
    request_for,
    stub_of,
    stubs_of_both,
)


async def all_answer(server: Server) -> None:
    address = (await server.addresses())["grpc_address"]
    async with AsyncExitStack() as stack:
        for stub in [stub_of(address, stack) for _ in range(8)]:
            await stub.ModelInfer(request_for("same", ONE), timeout=SECONDS)


async def gone(processes: list[psutil.Process]) -> bool:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=SECONDS)
    return not alive


async def test_the_spare_takes_the_seat_of_a_killed_worker(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers("--model-repository", models)
    async with AsyncExitStack() as stack:
        stubs = await stubs_of_both(server, stack)
        await ready(stubs[0])
        await stubs[0].RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
    spare = await server.spare()
    os.kill(await server.pid(1), signal.SIGKILL)
    replacement = await server.until("worker serves", worker=1, times=2)
    assert replacement["pid"] == spare.pid
    assert server.events("worker started", worker=1, pid=spare.pid, spare=True)
    # It obeys the orders that were given before it had the seat.
    async with AsyncExitStack() as stack:
        for stub in await stubs_of_both(server, stack):
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="same"))).ready
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ModelInfer(request_for("other", ONE))
    # Then another waits, and takes the next seat, in the same way.
    second = await server.spare(times=2)
    os.kill(await server.pid(0), signal.SIGKILL)
    assert (await server.until("worker serves", worker=0, times=2))["pid"] == second.pid
    await all_answer(server)


async def test_a_spare_is_no_worker(start_workers: Start, models: Path) -> None:
    server = await start_workers("--model-repository", models)
    spare = await server.spare()
    async with AsyncExitStack() as stack:
        stubs = await stubs_of_both(server, stack)
        await ready(stubs[0])
        for stub in stubs:
            await stub.ModelInfer(request_for("same", ONE), timeout=SECONDS)
        request = pb.ModelStatisticsRequest(name="same")
        (row,) = (await stubs[0].ModelStatistics(request)).model_stats
        assert row.inference_stats.success.count == len(stubs)
    metrics = await server.metrics()
    assert metrics["modelrail_inference_workers"] == 2
    assert metrics["modelrail_inference_loaded_versions"] == 3
    assert counted(metrics, "nv_inference_request_success", "same") == len(stubs)
    memory = [key for key in metrics if key.startswith("process_resident_memory_bytes")]
    assert memory == [f'process_resident_memory_bytes{{worker="{n}"}}' for n in (0, 1)]
    assert not spare.net_connections("inet")
    assert {process.pid for process in server.processes()} == {
        spare.pid, await server.pid(0), await server.pid(1),
    }  # fmt: skip


async def test_a_killed_spare_is_replaced_and_no_worker_notices(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers("--model-repository", models)
    spare = await server.spare()
    spare.kill()
    assert (await server.until("spare ended", pid=spare.pid))["status"] == -signal.SIGKILL
    second = await server.spare(times=2)
    assert second.pid != spare.pid
    await all_answer(server)
    assert not server.events("worker ended")
    assert len(server.events("worker started")) == 2
    assert (await server.metrics())["modelrail_inference_worker_restarts_total"] == 0


async def test_a_stuck_spare_is_replaced(start_workers: Start, models: Path) -> None:
    server = await start_workers(
        "--model-repository", models, "--worker-heartbeat-timeout-seconds", 1
    )
    spare = await server.spare()
    spare.suspend()
    await server.until("spare is stuck", pid=spare.pid)
    await server.until("spare ended", pid=spare.pid)
    second = await server.spare(times=2)
    os.kill(await server.pid(0), signal.SIGKILL)
    assert (await server.until("worker serves", worker=0, times=2))["pid"] == second.pid
    assert len(server.events("worker ended")) == 1


async def test_a_worker_that_dies_together_with_the_spare_is_replaced(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers("--model-repository", models)
    spare = await server.spare()
    spare.kill()
    os.kill(await server.pid(1), signal.SIGKILL)
    replacement = await server.until("worker serves", worker=1, times=2)
    assert replacement["pid"] != spare.pid
    await all_answer(server)
    second = await server.spare(times=2)
    os.kill(await server.pid(0), signal.SIGKILL)
    assert (await server.until("worker serves", worker=0, times=2))["pid"] == second.pid
    metrics = await server.metrics()
    assert metrics["modelrail_inference_workers"] == 2


async def test_one_of_two_workers_that_die_together_gets_the_spare(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers("--model-repository", models)
    spare = await server.spare()
    pids = [await server.pid(number) for number in (0, 1)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for number in (0, 1):
        await server.until("worker serves", worker=number, times=2)
    started = server.events("worker started")
    assert [event["spare"] for event in started] == [False, False, True, False]
    assert started[2]["pid"] == spare.pid
    await all_answer(server)
    assert (await server.spare(times=2)).is_running()


async def test_a_shutdown_ends_the_spare_as_well(start_workers: Start, models: Path) -> None:
    server = await start_workers(
        "--model-repository", models, "--worker-heartbeat-timeout-seconds", 600
    )
    spare = await server.spare()
    spare.suspend()  # it is not asked
    processes = server.processes()
    assert len(processes) == 3
    server.process.send_signal(signal.SIGTERM)
    assert await server.end() == 0
    assert await gone(processes)
    assert not server.events("spare ended")


async def test_the_spare_dies_with_its_supervisor(start_workers: Start, models: Path) -> None:
    server = await start_workers("--model-repository", models)
    await server.spare()
    processes = server.processes()
    assert len(processes) == 3
    server.process.kill()
    assert await gone(processes)
