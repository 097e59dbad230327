"""Five times as many requests as a model can answer: what can be is, the others are told at once.

Row 26 of the acceptance table. Callers do not wait for each other; the times at which they come are
those of a Poisson process. One run takes so long that the callers themselves are no load.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelrail.bench.load.arrivals import poisson_arrivals
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.faults.conftest import Start
from tests.faults.models import counting, output, request_for
from tests.faults.service import MIB, SECONDS, Service, eventually

Code = grpc.StatusCode
RUN_SECONDS = 0.02
"""What a run shall take."""
DEADLINE_SECONDS = 0.5
FACTOR = 5
CHANNELS = 4
TOLD = {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}


@dataclass
class Outcomes:
    """What became of the requests."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From due to answered, of those that were answered."""
    without_hint: list[str] = field(default_factory=list)

    def failed(self, error: grpc.aio.AioRpcError, elapsed: float) -> None:
        reason, hint = told(error)
        self.counts[f"{error.code().name} {reason}".strip()] += 1
        out_of_time = reason == "REQUEST_TIMEOUT" and elapsed > 0.9 * DEADLINE_SECONDS
        if error.code() in TOLD and not hint and not out_of_time:
            self.without_hint.append(f"{error.code().name}: {error.details()}")


def told(error: grpc.aio.AioRpcError) -> tuple[str, bool]:
    """The reason, and whether both say when to come again: the details, and gRPC's trailer."""
    trailers = dict(error.trailing_metadata() or ())
    details = Status.FromString(trailers.get("grpc-status-details-bin", b"")).details
    info, retry = ErrorInfo(), RetryInfo()
    for detail in details:
        detail.Unpack(info)
        detail.Unpack(retry)
    delay = retry.retry_delay.ToMilliseconds()
    return info.reason, delay > 0 and trailers.get("grpc-retry-pushback-ms") == str(delay)


class Load:
    """Requests to a model whose run takes a known time."""

    def __init__(self, stubs: list[Any]) -> None:
        self._stubs = stubs
        self._steps = 2_000

    def _request(self) -> pb.ModelInferRequest:
        return request_for("counting", np.array(self._steps, np.int64))

    async def calibrate(self) -> None:
        """Finds the number of steps that takes the time of a run, when nothing disturbs it."""
        for _ in range(3):
            seconds = []
            for _ in range(10):
                began = time.perf_counter()
                await self._stubs[0].ModelInfer(self._request(), timeout=SECONDS)
                seconds.append(time.perf_counter() - began)
            self._steps = round(self._steps * RUN_SECONDS / min(seconds))

    async def peak(self, seconds: float) -> float:
        """Returns the answers in a second when somebody always waits."""
        end = time.monotonic() + seconds
        answered = 0

        async def loop(stub: Any) -> None:
            nonlocal answered
            while time.monotonic() < end:
                await stub.ModelInfer(self._request(), timeout=SECONDS)
                answered += 1

        async with asyncio.TaskGroup() as tasks:
            for stub in self._stubs:
                tasks.create_task(loop(stub))
        return answered / seconds

    async def offer(self, rate: float, seconds: float) -> Outcomes:
        """Sends at that rate, whatever becomes of what was sent."""
        outcomes = Outcomes()
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number, after_ns in enumerate(poisson_arrivals(rate, seed=(26,))):
                due = began + after_ns / 1e9
                if due > began + seconds:
                    break
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                stub = self._stubs[number % len(self._stubs)]
                tasks.create_task(self._one(stub, due, outcomes))
        return outcomes

    async def _one(self, stub: Any, due: float, outcomes: Outcomes) -> None:
        began = time.monotonic()
        try:
            reply = await stub.ModelInfer(self._request(), timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            outcomes.failed(error, time.monotonic() - began)
        else:
            assert output(reply) == [float(self._steps)]
            outcomes.counts["OK"] += 1
            outcomes.seconds.append(time.monotonic() - due)


class Operator:
    """Somebody who looks after the service meanwhile and must be answered."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = GRPCInferenceServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self.over = False
        self.seconds: list[float] = []

    async def run(self) -> None:
        while not self.over:
            began = time.perf_counter()
            health = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            request = pb.ModelReadyRequest(name="counting")
            assert (await self._stub.ModelReady(request, timeout=SECONDS)).ready
            described = await self._stub.ModelMetadata(
                pb.ModelMetadataRequest(name="counting"), timeout=SECONDS
            )
            assert described.name == "counting"
            self.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)


def waited(service: Service, edge_us: str) -> float:
    """How many of the answered requests were in the queue no longer than so many microseconds."""
    return service.metric("nv_inference_queue_duration_histogram_us_bucket", le=edge_us)


def useful_seconds(service: Service) -> float:
    """How long the model has run for requests that were answered."""
    return service.metric("nv_inference_compute_infer_duration_us") / 1e6


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
async def test_under_overload_what_can_be_answered_in_time_is_and_the_rest_is_told_when_to_come(
    start: Start, seconds: int
) -> None:
    service = start(models=(counting,))
    channels = [service.aio_channel() for _ in range(CHANNELS)]
    load = Load([GRPCInferenceServiceStub(channel) for channel in channels])
    operator = Operator(channels[0])
    await load.calibrate()
    peak = await load.peak(2)
    before, late_before = service.rss_bytes, waited(service, "+Inf") - waited(service, "500000")
    useful_before = useful_seconds(service)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(operator.run())
        outcomes = await load.offer(FACTOR * peak, seconds)
        operator.over = True
    for channel in channels:
        await channel.close()

    goodput = outcomes.counts["OK"] / seconds
    useful = (useful_seconds(service) - useful_before) / seconds
    print(
        f"peak {peak:.1f}/s, offered {FACTOR * peak:.0f}/s for {seconds} s, "
        f"answered {goodput:.1f}/s = {goodput / peak:.0%} of peak, "
        f"in {useful:.0%} of the time; {dict(outcomes.counts)}"
    )
    print(
        f"slowest answer {max(outcomes.seconds, default=0) * 1e3:.0f} ms after it was due; "
        f"{len(operator.seconds)} rounds of the operator, slowest {max(operator.seconds):.3f} s; "
        f"resident {before >> 20} -> {service.rss_bytes >> 20} MB, peak {service.peak_bytes >> 20}"
    )
    kinds = {kind.partition(" ")[0] for kind in outcomes.counts}
    assert kinds <= {"OK", "DEADLINE_EXCEEDED", *(code.name for code in TOLD)}
    assert not outcomes.without_hint, outcomes.without_hint[:3]
    assert outcomes.counts.total() > 2 * outcomes.counts["OK"], "that was no overload"
    # Most of the time goes into answers that come in time, however fast the machine is just now.
    assert useful > 0.5
    assert goodput > 0.25 * peak
    # Nobody was answered who had waited longer than until the deadline.
    assert waited(service, "+Inf") - waited(service, "500000") == late_before
    assert service.peak_bytes - before < 64 * MIB
    assert len(operator.seconds) > seconds
    await eventually(lambda: service.metric("modelrail_inference_in_flight") == 0)
    assert service.stop() == 0
