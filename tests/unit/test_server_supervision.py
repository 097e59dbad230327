"""What supervisor and workers tell each other, and what is made of it; no processes here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modelrail_server.address import Address, BindError
from modelrail_server.errors import InvalidArgument, NotFound, ServiceError, Unavailable
from modelrail_server.observability.exposition import render
from modelrail_server.supervision.channel import Answer, Channel, ChannelClosedError
from modelrail_server.supervision.error_document import InternalFailure, error_document, error_of
from modelrail_server.supervision.frame import (
    MAX_FRAME_BYTES,
    FrameError,
    encode_frame,
    read_frame,
    receive_frame,
)
from modelrail_server.supervision.held_port import HeldPort
from modelrail_server.supervision.merged_metrics import MergedMetrics
from modelrail_server.supervision.restarts import Restarts


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_messages_come_out_as_they_went_in() -> None:
    messages: list[dict[str, Any]] = [
        {"method": "load", "arguments": {"subject": "ž\n"}},
        {"id": 1, "result": [1.5]},
    ]
    reader = reader_of(b"".join(encode_frame(message) for message in messages))
    assert [await read_frame(reader), await read_frame(reader)] == messages
    assert await read_frame(reader) is None


async def test_a_message_that_was_cut_off_is_the_end() -> None:
    assert await read_frame(reader_of(encode_frame({"id": 1})[:-1])) is None


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "expected at most"),
        (b"\0\0\0\x01{", "expected JSON"),
        (b"\0\0\0\x02[]", "expected a JSON object, got list"),
    ],
)
async def test_what_is_no_message_is_told(data: bytes, problem: str) -> None:
    with pytest.raises(FrameError, match=problem):
        await read_frame(reader_of(data))


def test_a_message_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(FrameError, match="expected at most"):
        encode_frame({"text": "x" * MAX_FRAME_BYTES})


def test_a_process_without_an_event_loop_reads_one_message_and_nothing_after_it() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(encode_frame({"n": 1}) + encode_frame({"n": 2}) + b"\0\0\0\x02[")
            assert [receive_frame(theirs), receive_frame(theirs)] == [{"n": 1}, {"n": 2}]
        assert receive_frame(theirs) is None  # cut off


def test_what_is_no_message_is_told_to_a_process_without_an_event_loop() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(FrameError, match="expected at most"):
            receive_frame(theirs)


@asynccontextmanager
async def connected(answer: Answer) -> AsyncIterator[tuple[Channel, Channel]]:
    """Two ends, of which the second answers."""
    ends: list[Channel] = []
    for side in socket.socketpair():
        reader, writer = await asyncio.open_unix_connection(sock=side)
        ends.append(Channel(reader, writer, answer))
    running = [asyncio.create_task(end.run()) for end in ends]
    yield ends[0], ends[1]
    for end in ends:
        end.close()
    async with asyncio.timeout(10):
        await asyncio.gather(*running)


async def test_calls_are_answered_in_any_order_and_errors_come_through_whole() -> None:
    first = asyncio.Event()

    async def answer(method: str, arguments: Mapping[str, Any]) -> Any:
        match method:
            case "first":
                await first.wait()
            case "second":
                first.set()
            case "missing":
                raise NotFound("no such model", reason="NO", resource="models/a", model="a")
            case _:
                raise KeyError("a defect")
        return [method, arguments]

    async with connected(answer) as (here, _), asyncio.timeout(10):
        first_call = here.call("first", {"n": 1}, timeout_seconds=5)
        second_call = here.call("second", {}, timeout_seconds=5)
        assert list(await asyncio.gather(first_call, second_call)) == [
            ["first", {"n": 1}],
            ["second", {}],
        ]
        with pytest.raises(NotFound, match="no such model") as missing:
            await here.call("missing", {}, timeout_seconds=5)
        assert missing.value.resource == "models/a"
        assert missing.value.metadata == {"model": "a"}
        with pytest.raises(InternalFailure, match="internal error"):
            await here.call("defect", {}, timeout_seconds=5)


async def test_a_call_ends_with_its_time_its_caller_or_the_other_side() -> None:
    asked = asyncio.Event()

    async def never(method: str, arguments: Mapping[str, Any]) -> Any:
        asked.set()
        await asyncio.Event().wait()

    async with connected(never) as (here, there), asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await here.call("wait", {}, timeout_seconds=0.01)
        asked.clear()
        leaving = asyncio.create_task(here.call("wait", {}, timeout_seconds=5))
        await asked.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        asked.clear()
        waiting = asyncio.create_task(here.call("wait", {}, timeout_seconds=5))
        await asked.wait()
        there.close()
        with pytest.raises(ChannelClosedError):
            await waiting
        with pytest.raises(ChannelClosedError):
            await here.call("wait", {}, timeout_seconds=5)


async def test_calls_that_wait_are_bounded() -> None:
    async def never(method: str, arguments: Mapping[str, Any]) -> Any:
        await asyncio.Event().wait()

    async with connected(never) as (here, _), asyncio.timeout(10):
        calls = [asyncio.create_task(here.call("wait", {}, timeout_seconds=5)) for _ in range(256)]
        await asyncio.sleep(0)  # lets them send
        with pytest.raises(Unavailable, match="too many calls"):
            await here.call("wait", {}, timeout_seconds=5)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("kind", ServiceError.__subclasses__())
def test_every_error_for_callers_survives_the_way_between_processes(
    kind: type[ServiceError],
) -> None:
    error = error_of(error_document(kind("text", retry_after_seconds=2.0)))
    assert type(error) is kind
    assert (error.message, error.retry_after_seconds) == ("text", 2.0)


def test_wrong_fields_survive_the_way_between_processes() -> None:
    error = error_of(error_document(InvalidArgument.field("a.b", "expected 1, got 2")))
    assert isinstance(error, InvalidArgument)
    assert [v.field for v in error.violations] == ["a.b"]


def text_of(registry: CollectorRegistry) -> str:
    lines = render(registry).decode().splitlines(keepends=True)
    return "".join(line for line in lines if "_created" not in line)


class Worker:
    """A registry with one metric of each kind."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("calls_total", "Calls", ("model",), registry=self.registry)
        self.waiting = Gauge("waiting", "Waiting", registry=self.registry)
        self.load = Gauge("nv_model_load_duration_secs", "Load", registry=self.registry)
        self.took = Histogram("took", "Took", buckets=(1.0,), registry=self.registry)
        self.memory = Gauge("process_memory", "Memory", ("kind",), registry=self.registry)

    def text(self) -> str:
        return text_of(self.registry)


def shown(merged: MergedMetrics) -> dict[str, str]:
    lines = [line for family in merged.families() for line in family.text()]
    samples = "".join(lines).splitlines()
    return dict(line.rsplit(" ", 1) for line in samples if not line.startswith("#"))


def test_counters_add_up_facts_do_not_and_processes_stay_apart() -> None:
    merged, workers = MergedMetrics(), [Worker(), Worker()]
    for number, worker in enumerate(workers):
        worker.calls.labels("a").inc(number + 1)
        worker.waiting.set(2)
        worker.load.set(0.25 * (number + 1))
        worker.took.observe(0.5 + number)
        worker.memory.labels("rss").set(7)
        merged.report(number, worker.text())
    workers[1].calls.labels("only } here").inc()
    merged.report(1, workers[1].text())
    assert shown(merged) == {
        'calls_total{model="a"}': "3.0",
        'calls_total{model="only } here"}': "1.0",
        "waiting": "4.0",
        "nv_model_load_duration_secs": "0.5",
        'took_bucket{le="1.0"}': "1.0",
        'took_bucket{le="+Inf"}': "2.0",
        "took_count": "2.0",
        "took_sum": "2.0",
        'process_memory{kind="rss",worker="0"}': "7.0",
        'process_memory{kind="rss",worker="1"}': "7.0",
    }


def test_no_counter_goes_back_when_a_worker_is_replaced() -> None:
    merged, worker = MergedMetrics(), Worker()
    worker.calls.labels("a").inc(5)
    worker.took.observe(2)
    worker.waiting.set(3)
    worker.memory.labels("rss").set(7)
    merged.report(0, worker.text())
    merged.retire(0)
    assert shown(merged) == {
        'calls_total{model="a"}': "5.0",
        'took_bucket{le="1.0"}': "0.0",
        'took_bucket{le="+Inf"}': "1.0",
        "took_count": "1.0",
        "took_sum": "2.0",
    }
    successor = Worker()
    successor.calls.labels("a").inc()
    merged.report(0, successor.text())
    assert shown(merged)['calls_total{model="a"}'] == "6.0"
    merged.retire(0)
    merged.retire(0)
    assert shown(merged)['calls_total{model="a"}'] == "6.0"


def serving(answered: dict[int, int], *, calls: int = 0) -> str:
    """Metrics of what the versions of model `a` answered, and of calls in all."""
    registry, labels = CollectorRegistry(), ("model", "version")
    Counter("calls_total", "Calls", registry=registry).inc(calls)
    counter = Counter("answered_total", "Answered", labels, registry=registry)
    took = Histogram("took", "Took", labels, buckets=(1.0,), registry=registry)
    for version, count in answered.items():
        counter.labels("a", str(version)).inc(count)
        for _ in range(count):
            took.labels("a", str(version)).observe(0.5)
    return text_of(registry)


def answered(merged: MergedMetrics, version: int = 1) -> str | None:
    return shown(merged).get(f'answered_total{{model="a",version="{version}"}}')


def test_a_version_that_no_worker_serves_is_gone_with_what_ended_workers_counted() -> None:
    merged = MergedMetrics()
    for number in (0, 1, 2):
        merged.report(number, serving({1: 10, 2: 1}, calls=5))
    merged.retire(2)
    merged.report(0, serving({2: 1}, calls=5))
    # The other still serves it, and nothing goes back until nobody does.
    assert answered(merged) == "30.0"
    merged.report(1, serving({2: 1}, calls=5))
    assert not [key for key in shown(merged) if 'version="1"' in key]
    assert (answered(merged, 2), shown(merged)["calls_total"]) == ("3.0", "15.0")
    merged.report(0, serving({1: 4, 2: 1}, calls=5))
    assert answered(merged) == "4.0"


def test_a_model_that_was_taken_away_begins_at_zero_although_it_is_there_again() -> None:
    merged = MergedMetrics()
    for number in (0, 1):
        merged.report(number, serving({1: 10}, calls=5))
    merged.retire(0)
    merged.forget("a")
    merged.report(1, serving({1: 0}, calls=5))
    assert answered(merged) == "0.0"
    assert shown(merged)["calls_total"] == "10.0"


def test_a_late_report_brings_back_no_metrics_of_a_model_that_was_taken_away() -> None:
    merged = MergedMetrics()
    for number, count in enumerate((60, 40)):
        merged.report(number, serving({1: count}, calls=5))
    merged.forget("a")
    merged.report(0, serving({}, calls=5))  # while the model is away
    assert answered(merged) is None
    for number in (0, 1):
        merged.report(number, serving({1: 0}, calls=5))
    assert answered(merged) == "0.0"
    assert shown(merged)["calls_total"] == "10.0"


def test_versions_that_come_and_go_leave_nothing_behind_and_take_nothing_along() -> None:
    merged = MergedMetrics()
    merged.report(1, serving({0: 1}, calls=1))
    for version in range(1, 100):
        for number in (0, 1):
            merged.report(number, serving({0: 1, version: 1}, calls=1))
        merged.retire(0)
    assert (answered(merged, 0), shown(merged)["calls_total"]) == ("100.0", "100.0")
    assert answered(merged, 99) == "2.0"
    assert len([key for key in shown(merged) if key.startswith("answered_total")]) == 2


def test_a_worker_is_replaced_at_once_and_later_the_sooner_it_dies() -> None:
    restarts = Restarts()
    assert [restarts.delay_seconds(1.0) for _ in range(9)] == [
        0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0,
    ]  # fmt: skip
    assert restarts.delay_seconds(60.0) == 0.0
    assert [restarts.delay_seconds(9.0) for _ in range(2)] == [0.0, 0.1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_held_port_lets_workers_in_and_nobody_else(host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    held = HeldPort(Address.parse(f"{host}:0"))
    try:
        assert held.address.port > 0
        # Before a worker listens, and while one does.
        with pytest.raises(BindError, match=r"cannot listen on .*: it is taken"):
            HeldPort(held.address)
        family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
        where = ("::1" if host == "[::1]" else "127.0.0.1", held.address.port)
        with socket.socket(family) as worker, socket.socket(family) as other:
            for side in (worker, other):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                side.bind(where)
                side.listen()
            with socket.create_connection(where, timeout=10):
                pass
            with pytest.raises(BindError):
                HeldPort(held.address)
    finally:
        held.close()
    HeldPort(held.address).close()


def test_a_port_that_somebody_listens_on_is_not_taken_over() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        address = Address("127.0.0.1", other.getsockname()[1], "")
        with pytest.raises(BindError, match="it is taken"):
            HeldPort(address)
    with pytest.raises(BindError, match="no address of this machine"):
        HeldPort(Address("192.0.2.1", 0, ""))
