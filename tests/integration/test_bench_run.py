"""Load tests against servers that fail, stall, or offer little, in this process.

The servers answer when a test lets them, so nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
import trustme
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from modelrail.bench import (
    BenchPlan,
    BenchReport,
    ClientProcessDied,
    ClosedLoop,
    OpenLoop,
    PlanError,
    run_bench,
    run_sweep,
)
from modelrail.bench.load.arrivals import poisson_arrivals
from modelrail.bench.load.stream import RequestStream
from modelrail.bench.measurement.failure import RequestFailed
from modelrail.client import Connection, Unavailable, open_channel
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2 import grpc_service_pb2_grpc as pb_grpc

ClientProcesses = Callable[[], list[psutil.Process]]
Context = grpc.aio.ServicerContext[Any, Any]
# Methods that no load test calls need not be written here.
_Servicer: Any = pb_grpc.GRPCInferenceServiceServicer


@dataclass
class Model(_Servicer):  # type: ignore[misc]
    """A model `m` with an FP32 input [-1, 2], answered as `answer` says; counts what it is sent."""

    answer: Callable[[int], Awaitable[str]]
    """Told the number of the request, from 1; returns an error message, or an empty text."""
    offers_extensions: bool = True
    arrivals: int = 0
    peers: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    bodies: set[bytes] = field(default_factory=set)

    async def ServerMetadata(self, request: Any, context: Context) -> pb.ServerMetadataResponse:  # noqa: N802
        if not self.offers_extensions:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no")
        return pb.ServerMetadataResponse(name="fake", version="7")

    async def ModelMetadata(self, request: Any, context: Context) -> pb.ModelMetadataResponse:  # noqa: N802
        response = pb.ModelMetadataResponse(name=request.name)
        response.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
        return response

    async def ModelConfig(self, request: Any, context: Context) -> pb.ModelConfigResponse:  # noqa: N802
        if not self.offers_extensions:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no")
        response = pb.ModelConfigResponse()
        response.config.max_batch_size = 8
        return response

    async def ModelStatistics(self, request: Any, context: Context) -> pb.ModelStatisticsResponse:  # noqa: N802
        if not self.offers_extensions:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no")
        response = pb.ModelStatisticsResponse()
        # As if every request waited 3 ms, and two were run together.
        one = response.model_stats.add(
            name="m", version="1", inference_count=self.arrivals, execution_count=self.arrivals // 2
        )
        for name, nanoseconds in (("queue", 3_000_000), ("compute_infer", 1_000_000)):
            duration = getattr(one.inference_stats, name)
            duration.count, duration.ns = self.arrivals, self.arrivals * nanoseconds
        return response

    async def ModelInfer(self, request: Any, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        error = await self.answer(self._note(request, context))
        if error:
            code, _, message = error.partition(": ")
            await context.abort(grpc.StatusCode[code], message)
        return pb.ModelInferResponse(model_name="m", id=request.id)

    def _note(self, request: Any, context: Context) -> int:
        self.arrivals += 1
        self.peers[context.peer()] += 1
        self.keys.update(
            str(v) for k, v in context.invocation_metadata() or () if k == "authorization"
        )
        self.bodies.add(b"".join(request.raw_input_contents))
        return self.arrivals


class Streams(Model):
    """Answers the requests of a stream in pairs, the second one first."""

    echoes_ids = True
    in_order = False
    replies = 1
    ends_after = 0

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        held: list[pb.ModelStreamInferResponse] = []
        async for request in requests:
            number = self._note(request, context)
            if number == self.ends_after:
                status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="going away")
                status.details.add().Pack(ErrorInfo(reason="SERVER_EXITING"))
                details = (("grpc-status-details-bin", status.SerializeToString()),)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going away", details)
            reply = pb.ModelStreamInferResponse(error_message=await self.answer(number))
            reply.infer_response.id = request.id if self.echoes_ids else ""
            held.append(reply)
            if len(held) == (1 if self.in_order else 2):
                for reply in reversed(held):
                    for index in range(self.replies):
                        if self.replies > 1:
                            final = reply.infer_response.parameters["triton_final_response"]
                            final.bool_param = index == self.replies - 1
                        yield reply
                held.clear()


@asynccontextmanager
async def serving(
    model: Model, address: str, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[str]:
    server = grpc.aio.server()
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(model, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path / 'socket'}"


@pytest.fixture
def client_processes() -> ClientProcesses:
    """Lists the child processes that the test began: other tests share their servers."""
    others = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in others]


def plan(address: str, **fields: Any) -> BenchPlan:
    defaults: dict[str, Any] = {"warm_up_seconds": 0.0, "duration_seconds": None, "requests": 40}
    return BenchPlan(connection=Connection(address=address), model="m", **{**defaults, **fields})


async def well(number: int) -> str:
    del number
    return ""


async def every_fourth_fails(number: int) -> str:
    return {0: "UNAVAILABLE: busy", 2: "INVALID_ARGUMENT: bad"}.get(number % 4, "")


async def test_a_closed_loop_sends_so_many_requests_and_never_more_at_once(address: str) -> None:
    flying, most = 0, 0

    async def answer(number: int) -> str:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0)
        flying -= 1
        return ""

    model = Model(answer)
    async with serving(model, address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(5), batch_size=4))
    assert (report.succeeded, report.failed, report.unsent) == (40, 0, 0)
    assert model.arrivals == 40
    assert most <= 5
    assert report.server == "fake 7"
    assert report.latency is not None
    assert report.latency.count == 40
    assert report.items_per_second == pytest.approx(4 * report.requests_per_second)
    assert report.requests_per_second == pytest.approx(40 / report.window_seconds)
    assert len(model.bodies) == 32, "as many different requests as are made"
    figures = report.server_figures
    assert figures is not None
    assert (figures.items, figures.executions, figures.mean_batch_size) == (40, 20, 2.0)
    assert figures.queue_seconds == pytest.approx(0.003)
    assert figures.compute_infer_seconds == pytest.approx(0.001)
    assert figures.compute_input_seconds is None


async def test_every_channel_is_a_connection_of_its_own() -> None:
    model = Model(well)
    async with serving(model, "127.0.0.1:0") as where:
        report = await run_bench(plan(where, load=ClosedLoop(4), channels=4))
    assert report.succeeded == 40
    assert len(model.peers) == 4


async def test_failures_are_counted_by_code_and_end_nothing(address: str) -> None:
    async with serving(Model(every_fourth_fails), address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(3)))
    assert report.succeeded == 20
    assert report.errors == {"INVALID_ARGUMENT": 10, "UNAVAILABLE": 10}
    assert report.error_examples == {"INVALID_ARGUMENT": "bad", "UNAVAILABLE": "busy"}
    assert report.error_rate == 0.5
    assert report.failure_latency is not None
    assert report.failure_latency.count == 20


class Refusing(Model):
    """Refuses with the details of google.rpc, or with what only looks like them."""

    async def ModelInfer(self, request: Any, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        number = self._note(request, context)
        status = Status(code=14, message="no")
        status.details.add().Pack(RetryInfo())
        status.details.add().Pack(ErrorInfo(reason=await self.answer(number)))
        details = b"\xff" if number % 4 == 0 else status.SerializeToString()
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"no {number % 4}")
        raise AssertionError("abort does not return")


async def test_failures_are_told_apart_by_the_reason_that_the_server_states(address: str) -> None:
    async def answer(number: int) -> str:
        return {1: "QUEUE_FULL", 2: "REQUEST_TIMEOUT"}.get(number % 4, "in words: \n\x1b[31m")

    async with serving(Refusing(answer), address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(1)))
    assert report.errors == {"UNAVAILABLE": 40}
    assert [(f.code, f.reason, f.latency.count, f.example) for f in report.failures] == [
        ("UNAVAILABLE", "", 20, "no 3"),
        ("UNAVAILABLE", "QUEUE_FULL", 10, "no 1"),
        ("UNAVAILABLE", "REQUEST_TIMEOUT", 10, "no 2"),
    ]


async def test_a_server_with_a_new_reason_for_each_request_fills_no_memory(address: str) -> None:
    async def answer(number: int) -> str:
        return f"REASON_{number}"

    async with serving(Refusing(answer), address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(1), requests=400))
    assert report.errors == {"UNAVAILABLE": 400}
    assert len(report.failures) <= 65


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_request_without_an_answer_fails_at_its_deadline(
    address: str, streaming: bool
) -> None:
    never = asyncio.Event()

    async def answer(number: int) -> str:
        if number == 3:
            await never.wait()
        return ""

    model = Streams(answer)
    model.in_order = True
    async with serving(model, address) as where:
        report = await run_bench(
            plan(
                where,
                load=ClosedLoop(2),
                requests=4,
                timeout_seconds=0.3,
                streaming=streaming,
                streams=2 if streaming else None,
            )
        )
    assert report.errors["DEADLINE_EXCEEDED"] >= 1
    assert report.succeeded + report.failed == 4
    assert report.failure_latency is not None
    assert report.failure_latency.least_seconds >= 0.29


async def test_a_stall_of_the_server_shows_in_the_p99_of_an_open_loop(address: str) -> None:
    rate, first, last, count = 300.0, 20, 100, 200
    gate = asyncio.Event()

    async def answer(number: int) -> str:
        # Requests go on arriving while none is answered: that is what an open loop is.
        if number >= last:
            gate.set()
        if number >= first:
            await gate.wait()
        return ""

    async with serving(Model(answer), address) as where:
        report = await run_bench(plan(where, load=OpenLoop(rate), requests=count, seed=5))
    due_ns = list(islice(poisson_arrivals(rate, seed=(5, 1, 0)), count))
    assert report.succeeded == count
    assert report.latency is not None
    # Three of 200 requests are as slow as the p99 or slower: the first three that were held up, for
    # at least as long as it took until the last one was due that opened the gate.
    stall_seconds = (due_ns[last - 1] - due_ns[first + 1]) / 1e9
    assert report.latency.p99_seconds >= stall_seconds * (1 - 1 / 256)
    assert report.latency.greatest_seconds >= (due_ns[last - 1] - due_ns[first - 1]) / 1e9


async def test_latency_counts_from_when_a_request_was_due_even_if_the_client_is_late(
    address: str,
) -> None:
    async def answer(number: int) -> str:
        if number == 30:
            # The client shares this event loop: nothing can leave meanwhile.
            time.sleep(0.4)  # noqa: ASYNC251
        return ""

    async with serving(Model(answer), address) as where:
        report = await run_bench(plan(where, load=OpenLoop(200.0), requests=200))
    assert report.latency is not None
    assert report.client.lateness is not None
    assert report.client.lateness.count == 200
    # About 80 requests were due in these 0.4 seconds; the ones due first waited longest.
    assert report.client.lateness.p99_seconds > 0.2
    assert report.latency.p99_seconds > 0.2
    assert any("the client is part of the latencies" in text for text in report.warnings)


async def test_what_finds_the_bound_reached_is_reported_as_unsent(address: str) -> None:
    gate = asyncio.Event()

    async def held(number: int) -> str:
        del number
        await gate.wait()
        return ""

    model = Model(held)
    async with serving(model, address) as where:
        running = asyncio.ensure_future(
            run_bench(
                plan(
                    where,
                    load=OpenLoop(400.0, max_outstanding=3),
                    requests=None,
                    duration_seconds=0.3,
                )
            )
        )
        asyncio.get_running_loop().call_later(0.6, gate.set)
        report = await running
    assert model.arrivals == 3
    assert report.succeeded == 3
    expected = sum(due < 0.3e9 for due in islice(poisson_arrivals(400.0, seed=(0, 1, 0)), 400))
    assert report.unsent == expected - 3
    assert report.error_rate == pytest.approx((expected - 3) / expected)
    assert report.requests_per_second == 0.0, "the answers came after the window"
    assert any("could not be sent" in text for text in report.warnings)


async def test_warm_up_counts_nowhere(address: str) -> None:
    model = Model(well)
    async with serving(model, address) as where:
        report = await run_bench(plan(where, warm_up_seconds=0.2, requests=10))
    assert report.succeeded == 10
    assert model.arrivals > 10
    assert report.server_figures is not None
    assert report.server_figures.items <= 11


class SlowStatistics(Model):
    """Never answers the first question for its statistics."""

    asked = 0

    async def ModelStatistics(self, request: Any, context: Context) -> pb.ModelStatisticsResponse:  # noqa: N802
        self.asked += 1
        if self.asked == 1:
            await asyncio.Event().wait()
        return await super().ModelStatistics(request, context)


async def test_statistics_that_come_too_late_are_told_as_that(address: str) -> None:
    async with serving(SlowStatistics(well), address) as where:
        report = await run_bench(plan(where, warm_up_seconds=0.05, requests=10))
    assert not report.interrupted
    assert report.server_figures is None
    assert report.notes == (
        "no statistics of the server (ModelStatistics): the server did not answer in time",
    )


async def test_a_run_that_is_stopped_in_its_warm_up_has_no_statistics(address: str) -> None:
    stop = asyncio.Event()

    async def answer(number: int) -> str:
        if number == 10:
            stop.set()
        return ""

    async with serving(Model(answer), address) as where:
        report = await run_bench(plan(where, warm_up_seconds=60.0), stop=stop)
    assert report.interrupted
    assert report.notes == (
        "no statistics of the server (ModelStatistics): the run was stopped during its warm-up",
    )


async def test_a_reply_of_a_stream_answers_the_request_with_its_id(address: str) -> None:
    async def answer(number: int) -> str:
        return "bad" if number == 1 else ""

    async with serving(Streams(answer), address) as where, open_channel(where) as channel:
        stream = RequestStream(channel, ())
        # The reply to the second one comes first.
        first, second = await asyncio.gather(
            stream.send(b"", 10.0), stream.send(b"", 10.0), return_exceptions=True
        )
        await stream.aclose()
    assert isinstance(first, RequestFailed)
    assert (first.code, first.message) == ("STREAM_ERROR", "bad")
    assert second is None


@pytest.mark.parametrize("echoes_ids", [True, False])
async def test_replies_of_a_stream_find_their_requests(address: str, echoes_ids: bool) -> None:
    model = Streams(every_fourth_fails)
    model.echoes_ids = echoes_ids
    async with serving(model, address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(8), streaming=True, streams=1))
    assert report.succeeded == 20
    assert report.errors == {"STREAM_ERROR": 20}
    assert report.error_examples["STREAM_ERROR"] in {"UNAVAILABLE: busy", "INVALID_ARGUMENT: bad"}
    assert model.arrivals == 40


async def test_errors_of_streams_are_told_apart_by_what_they_say(address: str) -> None:
    async def answer(number: int) -> str:
        late = f"[request id: {number}] expected an answer in {number} ms"
        return {0: "Exceeds maximum queue size", 1: late}.get(number % 4, "")

    model = Streams(answer)
    async with serving(model, address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(8), streaming=True, streams=1))
    assert report.errors == {"STREAM_ERROR": 20}
    assert {(one.code, one.reason, one.latency.count) for one in report.failures} == {
        ("STREAM_ERROR", "", 10)
    }
    late, full = sorted((one.example for one in report.failures), reverse=True)
    assert late.startswith("[request id: ")
    assert full == "Exceeds maximum queue size"


async def test_an_answer_of_several_replies_ends_with_the_final_one(address: str) -> None:
    model = Streams(well)
    model.replies, model.in_order = 3, True
    async with serving(model, address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(2), streaming=True))
    assert report.succeeded == 40


async def test_a_stream_that_breaks_fails_what_is_in_flight_and_is_opened_again(
    address: str,
) -> None:
    model = Streams(well)
    model.in_order, model.ends_after = True, 11
    async with serving(model, address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(1), streaming=True))
    assert report.succeeded == 39
    assert report.errors == {"UNAVAILABLE": 1}
    assert report.error_examples == {"UNAVAILABLE": "going away"}
    assert [failure.reason for failure in report.failures] == ["SERVER_EXITING"]


async def test_a_server_that_offers_little_is_measured_all_the_same(address: str) -> None:
    async with serving(Model(well, offers_extensions=False), address) as where:
        report = await run_bench(plan(where))
    assert report.succeeded == 40
    assert report.server == ""
    assert report.server_figures is None
    for missing in ("ServerMetadata", "ModelConfig", "ModelStatistics"):
        assert any(missing in note for note in report.notes)


async def test_several_processes_share_the_load_and_their_counts_add_up(
    address: str, client_processes: ClientProcesses
) -> None:
    model = Model(every_fourth_fails)
    async with serving(model, address) as where:
        report = await run_bench(plan(where, load=ClosedLoop(5), processes=2, requests=41))
    assert model.arrivals == 41
    assert report.succeeded + report.failed == 41
    assert report.errors == {"INVALID_ARGUMENT": 10, "UNAVAILABLE": 10}
    assert report.client.processes == 2
    assert report.latency is not None
    assert report.latency.count == report.succeeded
    assert not client_processes()


async def test_a_client_process_that_dies_is_an_error_and_leaves_none_behind(
    address: str, client_processes: ClientProcesses
) -> None:
    async def answer(number: int) -> str:
        if number == 10:
            client_processes()[0].kill()
        return ""

    async with serving(Model(answer), address) as where:
        with pytest.raises(ClientProcessDied, match="status -9"):
            await run_bench(
                plan(where, load=ClosedLoop(4), processes=2, requests=None, duration_seconds=30.0)
            )
    assert not client_processes()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("load", [ClosedLoop(4), OpenLoop(200.0)])
async def test_a_stopped_run_reports_what_was_measured_by_then(
    address: str,
    processes: int,
    load: ClosedLoop | OpenLoop,
    client_processes: ClientProcesses,
) -> None:
    stop, never = asyncio.Event(), asyncio.Event()

    async def answer(number: int) -> str:
        if number > 30:
            stop.set()
            await never.wait()
        return ""

    async with serving(Model(answer), address) as where:
        report = await run_bench(
            plan(where, load=load, processes=processes, requests=None, duration_seconds=60.0),
            stop=stop,
        )
    assert report.interrupted
    # Answers that were on their way to the client just then are not counted any more.
    assert 1 <= report.succeeded <= 30
    assert report.failed == 0
    assert report.succeeded + report.unfinished >= 31
    assert 0 < report.window_seconds < 60
    assert not client_processes()


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_cancelled_run_leaves_nothing_behind(
    address: str, processes: int, client_processes: ClientProcesses
) -> None:
    arrived = asyncio.Event()

    async def answer(number: int) -> str:
        del number
        arrived.set()
        return ""

    before = asyncio.all_tasks()
    async with serving(Model(answer), address) as where:
        running = asyncio.ensure_future(
            run_bench(
                plan(
                    where,
                    load=OpenLoop(200.0),
                    processes=processes,
                    requests=None,
                    duration_seconds=60.0,
                )
            )
        )
        await arrived.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert not client_processes()
    names = {getattr(t.get_coro(), "__qualname__", "") for t in asyncio.all_tasks() - before}
    assert not any("bench" in name or "OpenLoop" in name for name in names)


async def test_a_sweep_runs_every_load_in_turn(address: str) -> None:
    async with serving(Model(well), address) as where:
        reports: list[BenchReport] = [
            report async for report in run_sweep(plan(where, requests=20), [1, 4, 2])
        ]
        assert [report.load_value for report in reports] == [1, 4, 2]
        assert all(report.succeeded == 20 for report in reports)
        with pytest.raises(PlanError, match="whole number"):
            await anext(run_sweep(plan(where), [1, 2.5]))


async def test_a_sweep_takes_no_more_processes_than_requests_in_flight(address: str) -> None:
    async with serving(Model(well), address) as where:
        plans = plan(where, load=ClosedLoop(4), processes=2, requests=20)
        reports = [report async for report in run_sweep(plans, [1, 2, 4])]
    assert [report.client.processes for report in reports] == [1, 2, 2]
    assert [report.succeeded for report in reports] == [20, 20, 20]


@pytest.mark.parametrize("processes", [1, 2])
async def test_every_client_process_uses_tls_and_the_key(tmp_path: Path, processes: int) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())]
    )
    model = Model(well)
    async with serving(model, "127.0.0.1:0", credentials) as where:
        connection = Connection(address=where, api_key="secret", ca_certificate=ca_file)
        report = await run_bench(
            BenchPlan(
                connection=connection,
                model="m",
                load=ClosedLoop(4),
                processes=processes,
                channels=4,
                warm_up_seconds=0.0,
                duration_seconds=None,
                requests=40,
            )
        )
    assert report.succeeded == 40
    assert model.keys == {"Bearer secret"}


async def test_the_command_fails_when_no_request_succeeds(address: str) -> None:
    async def answer(number: int) -> str:
        del number
        return "RESOURCE_EXHAUSTED: too much of it"

    async with serving(Model(answer), address) as where:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "modelrail.cli", "bench", "m", "--inference", where,
            "--requests", "20", "--warm-up", "0", "--slo", "p99<20ms",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await command.communicate()
    assert command.returncode == 1
    assert "0 succeeded, 20 failed" in output.decode()
    assert "20 x RESOURCE_EXHAUSTED: too much of it" in output.decode()
    assert "p99<20ms: no request succeeded, missed" in output.decode()
    assert errors.decode() == "error: no request succeeded: RESOURCE_EXHAUSTED\n"


async def test_the_command_misses_a_latency_that_most_requests_never_had(address: str) -> None:
    async def answer(number: int) -> str:
        return "" if number % 10 == 0 else "UNAVAILABLE: busy"

    async with serving(Model(answer), address) as where:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "modelrail.cli", "bench", "m", "--inference", where,
            "--requests", "100", "--warm-up", "0", "--slo", "p99<60s", "--json",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await command.communicate()
    assert command.returncode == 3, errors.decode()
    remark = "90 of 100 requests failed or unsent, counted as slower than any bound"
    content = json.loads(output)
    assert content["due_latency"]["p99_seconds"] is None
    assert content["objectives"] == [
        {"objective": "p99<60s", "value": None, "met": False, "remark": remark}
    ]
    assert f"p99<60s: unbounded, missed ({remark})" in errors.decode()


class Unloaded(Model):
    """Has the model for the first two runs."""

    runs = 0

    async def ModelMetadata(self, request: Any, context: Context) -> pb.ModelMetadataResponse:  # noqa: N802
        self.runs += 1
        if self.runs > 2:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unloaded")
        return await super().ModelMetadata(request, context)


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_sweep_that_fails_later_shows_what_it_has(
    address: str, tmp_path: Path, as_json: bool
) -> None:
    plot = tmp_path / "plot.svg"
    async with serving(Unloaded(well), address) as where:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "modelrail.cli", "bench", "m", "--inference", where,
            "--requests", "20", "--warm-up", "0", "--sweep", "concurrency:1,2,4",
            "--plot", str(plot), *(["--json"] if as_json else []),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await command.communicate()
    assert command.returncode == 1
    assert errors.decode().splitlines()[-1] == "error: NOT_FOUND: unloaded"
    if as_json:
        shown = json.loads(output)
        assert [point["load"]["concurrency"] for point in shown["points"]] == [1, 2]
        assert shown["interrupted"] is True
    else:
        _, _, *rows = output.decode().splitlines()
        assert [row.split()[0] for row in rows[:2]] == ["1", "2"]
    assert plot.exists()


def all_of_terminal(descriptor: int) -> str:
    """Reads until nobody writes there any more, which the system calls an error."""
    parts = []
    with open(descriptor, "rb", buffering=0) as stream, suppress(OSError):
        while part := stream.read(4096):
            parts.append(part)
    return b"".join(parts).decode()


async def test_a_terminal_is_told_which_load_of_a_sweep_runs(address: str) -> None:
    theirs, ours = os.openpty()
    async with serving(Model(well), address) as where:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "modelrail.cli", "bench", "m", "--inference", where,
            "--requests", "20", "--warm-up", "0", "--sweep", "concurrency:1,4",
            stdout=asyncio.subprocess.PIPE,
            stderr=ours,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )  # fmt: skip
        os.close(ours)
        shown, _ = await asyncio.gather(
            asyncio.to_thread(all_of_terminal, theirs), command.communicate()
        )
    assert command.returncode == 0, shown
    assert "measuring m under concurrency 1 (1 of 2)" in shown
    assert "measuring m under concurrency 4 (2 of 2)" in shown


async def test_a_server_that_is_not_there_is_an_error(address: str) -> None:
    with pytest.raises(Unavailable):
        await run_bench(plan(address))
