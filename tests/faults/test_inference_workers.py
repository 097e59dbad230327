"""`modelrail-inference --workers 2` as processes: killed, frozen, stopped and misconfigured."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from modelrail.client import AsyncInferenceClient, AsyncRegistryClient
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail.registry.v1 import registry_pb2
from modelrail_registry.__main__ import build as build_registry
from modelrail_registry.config import RegistryConfig
from modelrail_server.application import Runtime
from modelrail_server.server import start_server
from tests.faults.workers import (
    ONE,
    SECONDS,
    Start,
    channel_to,
    counted,
    ready,
    request_for,
    same,
    stub_of,
    stubs_of_both,
)


async def test_two_workers_answer_on_one_port_as_one_server(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers("--model-repository", models)
    async with AsyncExitStack() as stack:
        stubs = await stubs_of_both(server, stack)
        await ready(stubs[0])
        for stub in stubs:
            for _ in range(3):
                await stub.ModelInfer(request_for("same", ONE), timeout=SECONDS)
        for stub in stubs:
            (row,) = (
                await stub.ModelStatistics(pb.ModelStatisticsRequest(name="same"))
            ).model_stats
            assert row.inference_stats.success.count == 3 * len(stubs)
            assert row.inference_stats.success.ns > 0
            assert sum(b.compute_infer.count for b in row.batch_stats) == row.execution_count
        metrics = await server.metrics()
        assert counted(metrics, "nv_inference_request_success", "same") == 3 * len(stubs)
        assert metrics["modelrail_inference_workers"] == 2
        assert metrics["modelrail_inference_worker_restarts_total"] == 0
        assert metrics["modelrail_inference_loaded_versions"] == 3
        assert 'process_resident_memory_bytes{worker="1"}' in metrics

        # What one worker is told, all of them do.
        await stubs[0].RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="same"))
        for stub in stubs:
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name="same"))).ready
            with pytest.raises(grpc.aio.AioRpcError, match="unloaded"):
                await stub.ModelInfer(request_for("same", ONE))
            index = (await stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
            states = {row.name: row.state for row in index}
            assert states == {"same": "UNAVAILABLE", "other": "READY", "counting": "READY"}
        await stubs[-1].RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="same"))
        for stub in stubs:
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="same"))).ready
            await stub.ModelInfer(request_for("same", ONE))
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stubs[0].RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="no"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_killed_workers_are_replaced_and_no_retried_request_is_lost(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers("--model-repository", models)
    address = (await server.addresses())["grpc_address"]
    async with AsyncExitStack() as stack:
        stub = stub_of(address, stack)
        await ready(stub)
        await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
        stop, answered = asyncio.Event(), Counter[int]()

        async def ask(number: int) -> None:
            """Calls as other services do, over a new connection after some requests."""
            while not stop.is_set():
                async with AsyncInferenceClient(address) as client:
                    for _ in range(20):
                        x = np.array([number], np.float32)
                        result = await client.infer("same", {"x": x}, timeout_seconds=SECONDS)
                        assert result.outputs["y"] == x
                        answered[number] += 1

        async def more() -> None:
            enough = sum(answered.values()) + 200
            while sum(answered.values()) < enough:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        shown = [await server.metrics()]
        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(ask(number))
            # Whichever worker has the connections, it is killed sooner or later.
            for victim in (0, 1):
                await more()
                shown.append(await server.metrics())
                began = time.perf_counter()
                os.kill(await server.pid(victim), signal.SIGKILL)
                await server.until("worker ended", worker=victim, status=-signal.SIGKILL)
                seen = time.perf_counter()
                shown.append(await server.metrics())
                await server.until("worker serves", worker=victim, times=2)
                # It does not listen before it can answer.
                assert len(server.events("version loaded", worker=victim, model="same")) == 2
                print(
                    f"death seen after {(seen - began) * 1e3:.0f} ms, replacement served after "
                    f"{(time.perf_counter() - began) * 1e3:.0f} ms"
                )
                await more()
            stop.set()
        shown.append(await server.metrics())
        print(sum(answered.values()), "requests, all answered")
        assert counted(shown[-1], "nv_inference_request_success", "same") > 400
        for before, after in pairwise(shown):
            counters = [key for key in before if key.startswith(("grpc_server_", "nv_inference_"))]
            assert not [
                (key, before[key], after.get(key))
                for key in counters
                if "pending" not in key
                if after.get(key, 0) < before[key]
            ]
        # The replacements serve what the others served, and no more.
        for stub in [stub_of(address, stack) for _ in range(8)]:
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="same"))).ready
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name="other"))).ready
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ModelInfer(request_for("other", ONE))
        assert shown[-1]["modelrail_inference_worker_restarts_total"] == 2
        assert shown[-1]["modelrail_inference_workers"] == 2


async def test_a_drain_answers_every_accepted_call(start_workers: Start, models: Path) -> None:
    server = await start_workers("--model-repository", models)
    async with AsyncExitStack() as stack:
        stubs = await stubs_of_both(server, stack)
        await ready(stubs[0])
        slow = request_for("counting", np.int64(100_000))
        calls = [stub.ModelInfer(slow, timeout=SECONDS) for stub in stubs]
        in_flight = "modelrail_inference_in_flight"
        success = "nv_inference_request_success"
        async with asyncio.timeout(SECONDS):
            while True:
                metrics = await server.metrics()
                done = counted(metrics, success, "counting")
                if counted(metrics, in_flight, "counting") + done == len(stubs):
                    break
        assert done < len(stubs), "nothing was in flight"
        server.process.send_signal(signal.SIGTERM)
        for answer in await asyncio.gather(*calls):
            assert answer.raw_output_contents == [np.array([100_000], np.float32).tobytes()]
        assert await server.end() == 0
    assert not server.address_file.exists()
    assert not server.events("worker ended")


async def test_a_second_signal_ends_everything_at_once(start_workers: Start, models: Path) -> None:
    server = await start_workers("--model-repository", models, "--shutdown-grace-seconds", 1000)
    async with AsyncExitStack() as stack:
        stubs = await stubs_of_both(server, stack)
        await ready(stubs[0])
        endless = request_for("counting", np.int64(10**12))
        call = stubs[0].ModelInfer(endless, timeout=SECONDS)
        async with asyncio.timeout(SECONDS):
            while not counted(await server.metrics(), "modelrail_inference_in_flight", "counting"):
                pass
        workers = server.processes()
        server.process.send_signal(signal.SIGTERM)
        await server.until("draining", signal="SIGTERM")
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == 128 + signal.SIGTERM
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, timeout=SECONDS)
    assert not alive
    assert not server.address_file.exists()


async def test_workers_die_with_their_supervisor(start_workers: Start, models: Path) -> None:
    server = await start_workers("--model-repository", models)
    await server.addresses()
    workers = [psutil.Process(await server.pid(number)) for number in (0, 1)]
    server.process.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, timeout=SECONDS)
    assert not alive


async def test_a_frozen_worker_is_replaced(start_workers: Start, models: Path) -> None:
    server = await start_workers(
        "--model-repository", models, "--worker-heartbeat-timeout-seconds", 1
    )
    address = (await server.addresses())["grpc_address"]
    victim = await server.pid(1)
    began = time.perf_counter()
    os.kill(victim, signal.SIGSTOP)
    await server.until("worker is stuck", worker=1, pid=victim)
    await server.until("worker serves", worker=1, times=2)
    print(f"frozen worker replaced after {time.perf_counter() - began:.2f} s")
    assert not psutil.pid_exists(victim)
    async with AsyncExitStack() as stack:
        for _ in range(8):
            stub = stub_of(address, stack)
            await stub.ModelInfer(request_for("same", ONE), timeout=SECONDS)


async def test_a_model_is_healthy_where_every_worker_serves_it(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers(
        "--model-repository", models, "--worker-heartbeat-timeout-seconds", 600
    )
    async with AsyncExitStack() as stack:
        channels = [await channel_to(server, number, stack) for number in (0, 1)]
        stub: Any = GRPCInferenceServiceStub(channels[0])
        await ready(stub)
        question = HealthCheckRequest(service="infer/other")
        stubs: list[Any] = [HealthStub(channel) for channel in channels]
        watches = [health.Watch(question, timeout=SECONDS) for health in stubs]

        async def shown(status: str) -> None:
            for watch in watches:
                assert HealthCheckResponse.ServingStatus.Name((await watch.read()).status) == status

        await shown("SERVING")
        await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
        await shown("NOT_SERVING")
        second = psutil.Process(await server.pid(1))
        second.suspend()
        load = stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="other"))
        # The stopped worker is asked, does not answer, and is left out.
        while not (await stub.ModelReady(pb.ModelReadyRequest(name="other"))).ready:
            assert not load.done()
        status = (await stubs[0].Check(question, timeout=SECONDS)).status
        assert status == HealthCheckResponse.NOT_SERVING
        second.resume()
        await load
        await shown("SERVING")
        # A worker that comes in another's place is told what the others serve.
        await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
        await shown("NOT_SERVING")
        second.kill()
        await server.until("worker serves", worker=1, times=2)
        third: Any = HealthStub(await channel_to(server, 1, stack))
        status = (await third.Check(question, timeout=SECONDS)).status
        assert status == HealthCheckResponse.NOT_SERVING
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="other"))
        state = HealthCheckResponse.ServingStatus.Name((await watches[0].read()).status)
        assert state == "SERVING"


async def test_a_supervisor_that_was_frozen_itself_kills_nobody(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers(
        "--model-repository", models, "--worker-heartbeat-timeout-seconds", 0.5
    )
    await server.spare()
    before = {process.pid for process in server.processes()}
    server.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1.5)  # three times what a worker may be silent for
    server.process.send_signal(signal.SIGCONT)
    metrics = await server.metrics()
    await asyncio.sleep(0.7)  # for the timers that were late
    assert metrics["modelrail_inference_workers"] == 2
    assert {process.pid for process in server.processes()} == before


async def test_a_file_is_served_by_workers_with_a_copy_each(
    start_workers: Start, tmp_path: Path
) -> None:
    model = same(tmp_path / "one.onnx")
    server = await start_workers("--model", model)
    async with AsyncExitStack() as stack:
        for stub in await stubs_of_both(server, stack):
            await stub.ModelInfer(request_for("one", ONE), timeout=SECONDS)
        rival = await start_workers("--model", model)
        assert await rival.end() == 2
        assert "is in use by another inference" in rival.stderr
    server.process.send_signal(signal.SIGINT)
    assert await server.end() == 0


async def test_workers_follow_a_registry_with_a_cache_each(
    start_workers: Start, tmp_path: Path
) -> None:
    config = RegistryConfig(grpc_address=f"unix:{tmp_path}/r", data_dir=tmp_path / "registry")
    runtime = Runtime("registry")
    async with AsyncExitStack() as stack:
        application = await stack.enter_async_context(build_registry(config, runtime))
        registry, registry_address = await start_server(application, config, runtime)
        stack.push_async_callback(registry.stop, 0)
        stack.callback(runtime.stopping.set)
        client = await stack.enter_async_context(AsyncRegistryClient(registry_address))

        async def publish(name: str) -> None:
            file = await client.upload_file(same(tmp_path / "file.onnx"), version_path="model.onnx")
            version = await client.create_model_version(
                f"models/{name}", registry_pb2.ModelVersion(files=[file]), create_model=True
            )
            await client.set_alias(f"models/{name}/aliases/production", version.name)

        await publish("one")
        await publish("two")
        server = await start_workers("--registry", registry_address, "--serve", "*@production")
        stubs = await stubs_of_both(server, stack)
        await ready(stubs[0])
        await stubs[0].RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="two"))
        os.kill(await server.pid(0), signal.SIGKILL)
        await server.until("worker serves", worker=0, times=2)
        late = [stub_of((await server.addresses())["grpc_address"], stack) for _ in range(8)]
        for stub in late:
            await stub.ModelInfer(request_for("one", ONE), timeout=SECONDS)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ModelInfer(request_for("two", ONE), timeout=SECONDS)
        await publish("one")
        second = pb.ModelReadyRequest(name="one", version="2")
        async with asyncio.timeout(SECONDS):
            # Ready in both: one of them alone is not enough.
            while not (await late[0].ModelReady(second)).ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for stub in late:
            response = await stub.ModelInfer(request_for("one", ONE), timeout=SECONDS)
            assert response.model_version == "2"
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == 0
    assert {path.name for path in (tmp_path / "data" / "workers").iterdir()} == {"0", "1"}


async def test_what_cannot_start_says_why_once(
    start_workers: Start, models: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    server = await start_workers("--model", bad)
    assert await server.end() == 2
    assert server.stderr.count("modelrail-inference: --model:") == 1
    assert "Traceback" not in server.stderr
    assert not server.address_file.exists()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--grpc-address", "--metrics-address"):
            server = await start_workers("--model-repository", models, flag, address)
            assert await server.end() == 1
            assert f"modelrail-inference: cannot listen on {address}" in server.stderr
            assert "Traceback" not in server.stderr

    server = await start_workers(
        "--model-repository", models, "--grpc-address", f"unix:{tmp_path}/s"
    )
    assert await server.end() == 2
    assert "--workers: expected 1 with --grpc-address unix:" in server.stderr
