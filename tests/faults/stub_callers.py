"""Callers without retries, who must be answered each time, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np

from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.faults.models import output, request_for
from tests.faults.service import SECONDS, Service, eventually

ROW = np.ones((1, 4), np.float32)


class Callers:
    """Some who call all the time, and the factor by which each answer was multiplied."""

    def __init__(self) -> None:
        self.answers: list[float] = []
        self.failures: list[str] = []
        self.over = False

    async def run(self, stub: Any) -> None:
        while not self.over:
            try:
                reply = await stub.ModelInfer(request_for("doubling", ROW), timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
            else:
                (row,) = output(reply)
                assert len(set(row)) == 1
                self.answers.append(row[0])
            await asyncio.sleep(0.002)


@asynccontextmanager
async def called_all_the_time(
    service: Service, count: int = 4
) -> AsyncIterator[tuple[Any, Callers]]:
    """Callers who are answered before, meanwhile and afterwards; and a stub on their connection."""
    callers = Callers()
    async with service.aio_channel() as channel, asyncio.TaskGroup() as tasks:
        stub: Any = GRPCInferenceServiceStub(channel)
        for _ in range(count):
            tasks.create_task(callers.run(stub))
        await eventually(lambda: len(callers.answers) > 20 or bool(callers.failures))
        try:
            yield stub, callers
            more = len(callers.answers) + 20
            await eventually(lambda: len(callers.answers) > more or bool(callers.failures))
        finally:
            callers.over = True
    assert not callers.failures, callers.failures[:3]
