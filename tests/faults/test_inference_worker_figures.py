"""What workers counted, as one server's figures: while one is silent, killed, or replaced."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.faults.workers import (
    ONE,
    SECONDS,
    Start,
    channel_to,
    counted,
    ready,
    request_for,
)


async def statistics_of(stub: Any, name: str) -> pb.ModelStatistics:
    request = pb.ModelStatisticsRequest(name=name)
    (row,) = (await stub.ModelStatistics(request, timeout=SECONDS)).model_stats
    assert isinstance(row, pb.ModelStatistics)
    return row


async def test_statistics_keep_what_a_worker_counted_that_is_silent_or_gone(
    start_workers: Start, models: Path
) -> None:
    server = await start_workers(
        "--model-repository", models, "--worker-heartbeat-timeout-seconds", 600
    )
    async with AsyncExitStack() as stack:
        channels = [await channel_to(server, number, stack) for number in (0, 1)]
        first, second = map(GRPCInferenceServiceStub, channels)
        await ready(first)
        for stub, times in ((first, 2), (second, 3)):
            for _ in range(times):
                await stub.ModelInfer(request_for("same", ONE), timeout=SECONDS)
        before = await statistics_of(first, "same")
        assert before.inference_stats.success.count == 5

        victim = psutil.Process(await server.pid(1))
        victim.suspend()
        assert await statistics_of(first, "same") == before
        victim.kill()
        await server.until("worker ended", worker=1)
        assert await statistics_of(first, "same") == before
        await server.until("worker serves", worker=1, times=2)
        assert await statistics_of(first, "same") == before
        await first.ModelInfer(request_for("same", ONE), timeout=SECONDS)
        after = await statistics_of(first, "same")
        assert after.inference_stats.success.count == 6
        assert after.inference_stats.success.ns > before.inference_stats.success.ns
        assert [batch.compute_infer.count for batch in after.batch_stats] == [6]

        # What was taken away begins at zero, although a worker that ended had counted.
        await first.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="same"))
        await first.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="same"))
        assert counted(await server.metrics(), "nv_inference_request_success", "same") == 0
        assert (await statistics_of(first, "same")).inference_stats.success.count == 0
