"""Callers who are slow, silent, many or hostile on the level of the connection.

Rows 22 to 25, 27 and 54 of the acceptance table. Figures of memory are of the service's process.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from modelrail.client.ended import errors_of
from modelrail.client.errors import ModelrailError
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.faults.conftest import Start
from tests.faults.models import doubling, output, request_for, text, wide
from tests.faults.service import MIB, SECONDS, Service, eventually

Code = grpc.StatusCode
LOADED = "modelrail_inference_loaded_versions"
ROW = np.ones((1, 4), np.float32)


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """Lets this process have the sockets that the tests need, as the service has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Bystander:
    """Somebody who calls all the time, on a connection of its own, and must not notice anything."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._stop = asyncio.Event()
        self.seconds: list[float] = []

    async def run(self) -> None:
        while not self._stop.is_set():
            began = time.perf_counter()
            response = await self._stub.ModelInfer(request_for("doubling", ROW), timeout=SECONDS)
            self.seconds.append(time.perf_counter() - began)
            assert output(response) == [[2.0] * 4]
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()


@asynccontextmanager
async def bystander(service: Service) -> AsyncIterator[None]:
    """Somebody who is answered during all of it; its slowest calls are printed."""
    async with service.aio_channel() as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        await stub.ModelInfer(request_for("doubling", ROW), timeout=SECONDS)
        somebody = Bystander(stub)
        before = service.rss_bytes
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(somebody.run())
            try:
                yield
            finally:
                somebody.stop()
        quantiles = statistics.quantiles([0.0, *somebody.seconds], n=100)
        print(
            f"bystander: {len(somebody.seconds)} calls, p50 {quantiles[49] * 1e3:.1f} ms, "
            f"p99 {quantiles[98] * 1e3:.1f} ms; resident {before >> 20} -> "
            f"{service.rss_bytes >> 20} MB, peak {service.peak_bytes >> 20} MB"
        )


def stub_of(channel: Any) -> Any:
    return GRPCInferenceServiceStub(channel)


def port_of(service: Service) -> int:
    return int(service.address.rpartition(":")[2])


# --- row 22: slow ends ----------------------------------------------------------------------------


class SlowLine:
    """A TCP proxy that carries at most so many bytes a second in one direction or both."""

    def __init__(self, port: int, *, up: float, down: float) -> None:
        self._port = port
        self._up, self._down = up, down
        self.carried_up = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port, limit=4096)
        directions = ((reader, far_writer, self._up, True), (far_reader, writer, self._down, False))
        for source, sink, rate, upwards in directions:
            task = asyncio.create_task(self._carry(source, sink, rate, upwards))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        rate: float,
        upwards: bool,
    ) -> None:
        try:
            while data := await source.read(4096):
                sink.write(data)
                await sink.drain()
                if upwards:
                    self.carried_up += len(data)
                await asyncio.sleep(len(data) / rate)
        except ConnectionError:
            pass
        finally:
            sink.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def slow_line(service: Service, *, up: float, down: float) -> AsyncIterator[tuple[Any, Any]]:
    """A slow line to the service, with a stub at its near end."""
    line = SlowLine(port_of(service), up=up, down=down)
    server = await asyncio.start_server(line.accept, "127.0.0.1", 0, limit=4096)
    port = server.sockets[0].getsockname()[1]
    try:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            yield line, GRPCInferenceServiceStub(channel)
    finally:
        await line.close()
        server.close()


FAST = 1e9
UNLIMITED = {"grpc.max_receive_message_length": -1}


async def test_whoever_sends_a_kilobyte_a_second_is_cut_by_its_deadline(start: Start) -> None:
    """By the service itself: these callers would go on for an hour."""
    service = start(models=(doubling, text))
    before = service.rss_bytes

    async def trickle() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(service))
        block = call_headers(Encoder(), ("grpc-timeout", "1500m"))
        writer.write(PREFACE + HeadersFrame(1, block, flags=["END_HEADERS"]).serialize())
        # The first bytes of a message of 4 MB.
        writer.write(DataFrame(1, b"\0" + (4_000_000).to_bytes(4, "big")).serialize())
        cut = asyncio.create_task(ended_stream(reader))
        while not cut.done():
            writer.write(DataFrame(1, b"a" * 100).serialize())
            await asyncio.wait([cut], timeout=0.1)
        await cut
        writer.close()

    async with bystander(service), asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        for _ in range(50):
            tasks.create_task(trickle())
    assert service.peak_bytes - before < 64 * MIB


async def ended_stream(reader: asyncio.StreamReader) -> None:
    """Reads until the service ends the first stream; fails if it ends the connection."""
    while True:
        head = await reader.readexactly(9)
        frame, length = Frame.parse_frame_header(memoryview(head))
        await reader.readexactly(length)
        if isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags:
            return


async def test_whoever_reads_a_kilobyte_a_second_is_read_no_faster(start: Start) -> None:
    """400 MB are offered; the service takes no more of them than may be in flight."""
    service = start("--max-stream-in-flight", "8", models=(doubling, text))
    size = 100_000
    request = request_for("text", np.array([[b"a" * size]], object))
    before = service.rss_bytes

    async def offer() -> AsyncIterator[pb.ModelInferRequest]:
        for _ in range(1000):
            yield request

    async with (
        bystander(service),
        slow_line(service, up=FAST, down=1000) as (line, stub),
    ):
        streams = [stub.ModelStreamInfer(offer()) for _ in range(4)]
        carried = -1
        async with asyncio.timeout(SECONDS):
            while line.carried_up == 0 or carried != line.carried_up:
                carried = line.carried_up
                await asyncio.sleep(1)
        print(f"carried {carried >> 20} of 381 MB; grown {(service.rss_bytes - before) >> 20} MB")
        for stream in streams:
            stream.cancel()
    assert carried < 4 * 8 * size * 4
    assert service.peak_bytes - before < 128 * MIB
    await eventually(lambda: service.metric("modelrail_inference_in_flight") == 0)


async def test_whoever_takes_no_answers_is_given_no_more_of_them(start: Start) -> None:
    """400 MB of answers are asked for; others go on, with small ones and with large ones."""
    service = start("--max-unread-bytes", str(64 * MIB), models=(doubling, wide))
    before = service.rss_bytes
    request = request_for("wide", ROW[:, :1])

    def count(outcome: str) -> float:
        return service.metric(f"nv_inference_request_{outcome}", model="wide")

    def is_handled(number: int) -> bool:
        return count("success") + count("failure") == number

    async with (
        bystander(service),
        service.aio_channel(**UNLIMITED) as channel,
        slow_line(service, up=FAST, down=1000) as (_, stub),
    ):
        calls = []
        for number in range(1, 101):
            calls.append(stub.ModelInfer(request))
            await eventually(partial(is_handled, number))
        refused = service.metric("modelrail_inference_refused_total", reason="REPLIES_UNREAD")
        assert refused == count("failure") > 50
        for _ in range(20):  # more than may be unread: whoever reads always finds room
            await stub_of(channel).ModelInfer(request, timeout=SECONDS)
        for call in calls:
            call.cancel()
    assert service.peak_bytes - before < 128 * MIB


# --- row 23: connections that say nothing ---------------------------------------------------------


def hello() -> bytes:
    """The first message of a TLS handshake, which nobody goes on with."""
    sent = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


async def silent(service: Service, count: int, first: bytes) -> None:
    """Opens connections, sends a beginning, and waits until the service has closed all of them."""

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(service))
        writer.write(first)
        try:
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
        writer.close()

    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(one())


async def test_a_thousand_half_open_connections_are_closed_and_disturb_nobody(
    start: Start,
) -> None:
    service = start(
        "--handshake-timeout-seconds", "2", "--max-connections", "1500", models=(doubling,)
    )
    before = service.rss_bytes
    async with bystander(service):
        await silent(service, 1000, b"PRI * HT")
    assert service.peak_bytes - before < 128 * MIB


async def test_two_hundred_idle_handshakes_are_closed_and_disturb_nobody(
    start: Start, tmp_path: Path
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "c.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    service = start(
        "--handshake-timeout-seconds", "2",
        "--tls-certificate", str(tmp_path / "c.pem"), "--tls-key", str(tmp_path / "k.pem"),
        models=(doubling,),
        credentials=grpc.ssl_channel_credentials(authority.cert_pem.bytes()),
    )  # fmt: skip
    before = service.rss_bytes
    async with bystander(service):
        await silent(service, 200, hello())
    assert service.peak_bytes - before < 128 * MIB


# --- row 24: floods of frames ---------------------------------------------------------------------

EVENTS = 10_000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()


def call_headers(encoder: Encoder, *more: tuple[str, str]) -> bytes:
    block: bytes = encoder.encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/inference.GRPCInferenceService/ModelInfer"),
            (":authority", "a"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *more,
        ]
    )
    return block


def rapid_reset() -> Iterator[Frame]:
    encoder = Encoder()
    for number in range(EVENTS):
        stream = 2 * number + 1
        yield HeadersFrame(stream, call_headers(encoder), flags=["END_HEADERS"])
        yield RstStreamFrame(stream, error_code=int(ErrorCodes.CANCEL))


def pings() -> Iterator[Frame]:
    for number in range(EVENTS):
        yield PingFrame(0, opaque_data=number.to_bytes(8, "big"))


def settings() -> Iterator[Frame]:
    for number in range(EVENTS):
        yield SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65_535 + number % 2})


def empty_data() -> Iterator[Frame]:
    yield HeadersFrame(1, call_headers(Encoder()), flags=["END_HEADERS"])
    for _ in range(EVENTS):
        yield DataFrame(1, b"")


def headers() -> Iterator[Frame]:
    """Header fields beyond the limit on many calls."""
    encoder = Encoder()
    for number in range(EVENTS // 20):
        block = call_headers(encoder) + encoder.encode([("x-note", f"{number}" * 3000)])
        yield HeadersFrame(2 * number + 1, block[:16_000], flags=["END_HEADERS", "END_STREAM"])


def continuations() -> Iterator[Frame]:
    """A header block that never ends, of 80 MB."""
    yield HeadersFrame(1, call_headers(Encoder()))
    for number in range(EVENTS):
        # Literal fields that no table remembers.
        yield ContinuationFrame(1, b"\x00\x05x-abc\x7f\xd1\x3e" + f"{number % 10}".encode() * 8000)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    "flood", [rapid_reset, pings, settings, empty_data, headers, continuations]
)
async def test_a_flood_of_frames_fills_no_memory_and_disturbs_nobody(
    start: Start, flood: Callable[[], Iterator[Frame]], reads: bool
) -> None:
    service = start(models=(doubling,))
    before = service.rss_bytes
    frames = [frame.serialize() for frame in flood()]
    async with bystander(service):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(service))
        told = bytearray()

        async def listen() -> None:
            while data := await reader.read(1 << 16):
                told.extend(data)

        listening = asyncio.create_task(listen()) if reads else None
        sent = 0
        ended = ""
        try:
            # One that does not read is stopped by its full socket: then the flood has ended too.
            async with asyncio.timeout(10 if reads else 4):
                writer.write(PREFACE)
                for chunk in batched(frames, 50):
                    writer.writelines(chunk)
                    sent += len(chunk)
                    await writer.drain()
                    await asyncio.sleep(0)  # the bystander's turn
        except (ConnectionError, TimeoutError) as error:
            ended = type(error).__name__
        if listening is not None:
            # What the service says last, if it has had enough.
            await asyncio.wait([listening], timeout=1)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        writer.transport.abort()
    goaways = [f"{ErrorCodes(code).name}" for code in goaways_in(bytes(told))]
    print(flood.__name__, "reads" if reads else "deaf", "frames sent", sent, ended, *goaways)
    assert service.process.poll() is None
    assert service.peak_bytes - before < 64 * MIB
    if reads and flood in {pings, continuations}:
        assert ended or goaways, "the connection goes on"


def batched(frames: list[bytes], size: int) -> Iterator[list[bytes]]:
    for first in range(0, len(frames), size):
        yield frames[first : first + size]


def goaways_in(told: bytes) -> list[int]:
    """The error codes of the GOAWAY frames among what was received."""
    found = []
    while len(told) >= 9:
        frame, length = Frame.parse_frame_header(memoryview(told[:9]))
        if len(told) < 9 + length:
            break
        if isinstance(frame, GoAwayFrame):
            frame.parse_body(memoryview(told[9 : 9 + length]))
            found.append(frame.error_code)
        told = told[9 + length :]
    return found


# --- row 25: very many streams --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connections", "limit"),
    [(10, 600), pytest.param(100, 2000, marks=pytest.mark.slow)],
)
async def test_streams_beyond_the_limit_are_refused_and_the_others_served(
    start: Start, connections: int, limit: int
) -> None:
    """Each of so many connections opens 100 streams and keeps them."""
    service = start("--max-concurrent-rpcs", str(limit), models=(doubling,))
    before = service.rss_bytes
    outcomes: Counter[str] = Counter()
    channels = [service.aio_channel() for _ in range(connections)]
    release = asyncio.Event()
    room = asyncio.Semaphore(500)
    everybody = 100 * connections

    async def keep() -> AsyncIterator[pb.ModelInferRequest]:
        yield request_for("doubling", ROW)
        await release.wait()

    async def one(stub: Any) -> None:
        async with room:
            stream = stub.ModelStreamInfer(keep())
            try:
                # grpc.aio forgets the refusal when it meets the write of a request.
                async with errors_of(stream):
                    reply = await stream.read()
            except ModelrailError as error:
                outcomes[type(error).__name__] += 1
                return
            right = output(reply.infer_response) == [[2.0] * 4]
            outcomes["answered" if right else "WRONG"] += 1
        await release.wait()
        stream.cancel()

    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        for channel in channels:
            stub: Any = GRPCInferenceServiceStub(channel)
            await channel.channel_ready()
            # The server says its limit of streams when the connection begins.
            await stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS, wait_for_ready=True)
        for channel in channels:
            stub = GRPCInferenceServiceStub(channel)
            for _ in range(100):
                tasks.create_task(one(stub))
        await eventually_counted(outcomes, everybody)
        async with service.aio_channel() as channel:
            await everything_that_probes_ask(channel)
        refused = await asyncio.to_thread(
            service.metric, "modelrail_refused_calls_total", reason="TOO_MANY_CALLS"
        )
        grown = service.rss_bytes - before
        release.set()
    print(dict(outcomes), f"grown {grown >> 20} MB, peak {service.peak_bytes >> 20} MB")
    for channel in channels:
        await channel.close()
    assert outcomes == {"answered": limit, "ResourceExhausted": everybody - limit}
    assert refused == everybody - limit
    assert grown < 256 * MIB
    async with service.aio_channel() as channel:
        stub = GRPCInferenceServiceStub(channel)
        began = time.perf_counter()
        answer = await recovered(stub)
        print(f"recovered after {time.perf_counter() - began:.2f} s")
        assert output(answer) == [[2.0] * 4]


async def everything_that_probes_ask(channel: grpc.aio.Channel) -> None:
    """Health, readiness and metadata are answered, however full the server is."""
    health: Any = HealthStub(channel)
    for name in ("", "infer/doubling"):
        check = await health.Check(HealthCheckRequest(service=name), timeout=SECONDS)
        assert check.status == HealthCheckResponse.SERVING
    stub: Any = GRPCInferenceServiceStub(channel)
    assert (await stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS)).live
    assert (await stub.ServerReady(pb.ServerReadyRequest(), timeout=SECONDS)).ready
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="doubling"), timeout=SECONDS)).ready
    assert (await stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=SECONDS)).name
    metadata = pb.ModelMetadataRequest(name="doubling")
    assert (await stub.ModelMetadata(metadata, timeout=SECONDS)).inputs


async def eventually_counted(outcomes: Counter[str], everybody: int) -> None:
    while outcomes.total() < everybody:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def recovered(stub: Any) -> Any:
    """Calls until one is answered."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await stub.ModelInfer(
                    request_for("doubling", ROW), timeout=SECONDS, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}:
                    raise
                await asyncio.sleep(0.02)


# --- row 27: messages at the limit, and far beyond ------------------------------------------------


def padded(size: int) -> pb.ModelInferRequest:
    """A good request of exactly so many bytes."""
    request = request_for("doubling", ROW)
    request.parameters["note"].string_param = "a" * size
    request.parameters["note"].string_param = "a" * (2 * size - request.ByteSize())
    assert request.ByteSize() == size
    return request


@pytest.mark.parametrize(
    ("large", "packed"),
    [(50_000_000, 100_000_000), pytest.param(200_000_000, 400_000_000, marks=pytest.mark.slow)],
)
def test_a_request_of_the_limit_is_answered_and_a_larger_one_takes_no_memory(
    start: Start, large: int, packed: int
) -> None:
    limit = 4 * MIB
    service = start("--max-message-bytes", str(limit), models=(doubling,))
    with (
        service.channel() as plain,
        service.channel(**{"grpc.default_compression_algorithm": 2}) as packing,
    ):
        stub = stub_of(plain)
        for size in (limit - 1, limit):
            assert output(stub.ModelInfer(padded(size), timeout=SECONDS)) == [[2.0] * 4]
        before = service.peak_bytes
        packer = stub_of(packing)
        for kind, sender, size in (
            ("one byte more", stub, limit + 1),
            ("large", stub, large),
            ("packed", packer, packed),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                sender.ModelInfer(padded(size), timeout=SECONDS)
            error: Any = caught.value
            assert error.code() is Code.RESOURCE_EXHAUSTED, (kind, error.details())
            # Sending it again does not help.
            assert "grpc-retry-pushback-ms" not in dict(error.trailing_metadata())
            print(f"{kind} ({size >> 20} MB): peak {before >> 20} -> {service.peak_bytes >> 20} MB")
        assert service.peak_bytes - before < 32 * MIB
        assert output(stub.ModelInfer(padded(limit), timeout=SECONDS)) == [[2.0] * 4]


# --- row 54: no more files ------------------------------------------------------------------------


async def test_a_service_without_files_left_sheds_and_comes_back(start: Start) -> None:
    service = start(models=(doubling,), wrapper=("prlimit", "--nofile=64:64"))
    async with bystander(service), service.aio_channel() as probing:
        probe: Any = HealthStub(probing)
        health = await probe.Check(HealthCheckRequest(), timeout=SECONDS)
        assert health.status == HealthCheckResponse.SERVING
        open_now = [
            await asyncio.open_connection("127.0.0.1", port_of(service)) for _ in range(150)
        ]
        accepted = 0

        async def greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            writer.write(PREFACE)
            try:
                async with asyncio.timeout(1):
                    return bool(await reader.read(9))
            except (ConnectionError, TimeoutError):
                return False

        greetings = await asyncio.gather(*(greeted(*connection) for connection in open_now))
        accepted = sum(greetings)
        print(f"{accepted} of {len(open_now)} connections were taken with 64 files")
        assert 0 < accepted < 64
        async with asyncio.timeout(SECONDS):
            assert await probe.Check(HealthCheckRequest(), timeout=SECONDS) == health
            # Whoever wants to know why reads it here.
            assert await asyncio.to_thread(service.metric, LOADED) == 1
        for _, writer in open_now:
            writer.transport.abort()
    async with service.aio_channel() as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        assert output(await recovered(stub)) == [[2.0] * 4]
    assert service.stop() == 0
