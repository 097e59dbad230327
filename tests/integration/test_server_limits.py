"""What a hostile or broken client can send, and how little it gets: all three real services."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from modelrail.oip.v2 import grpc_service_pb2
from modelrail.registry.v1 import registry_pb2
from modelrail.trainer.v1 import trainer_pb2
from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.provider import Provider
from modelrail_inference.service import build as build_inference
from modelrail_registry.__main__ import build as build_registry
from modelrail_registry.config import RegistryConfig
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ServerConfig
from modelrail_server.server import start_server
from modelrail_server.standard.health import MAX_WATCHES
from modelrail_trainer.__main__ import build_trainer
from modelrail_trainer.config import TrainerConfig

Code = grpc.StatusCode
SERVICES = ("registry", "trainer", "inference")
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
# Methods for callers with a key, whose request begins with a name.
GET = {
    "registry": "/modelrail.registry.v1.RegistryService/GetModel",
    "trainer": "/modelrail.trainer.v1.TrainerService/GetTrainingJob",
    "inference": "/inference.GRPCInferenceService/ModelConfig",
}
SECONDS = 20.0


def application_of(
    service: str, folder: Path, **given_settings: Any
) -> tuple[ServerConfig, Callable[[Runtime], AbstractAsyncContextManager[Application]]]:
    """The settings of a service, and what builds it: nothing outside of `folder` is needed."""
    values = {"data_dir": folder / "data", "grpc_address": "127.0.0.1:0", **given_settings}
    if service == "registry":
        registry = RegistryConfig(**values)
        return registry, lambda runtime: build_registry(registry, runtime)
    if service == "trainer":
        trainer = TrainerConfig(**values, registry=f"unix:{folder}/nobody")
        return trainer, lambda runtime: build_trainer(
            trainer, runtime, worker_command=("false",), environ={}
        )
    models = folder / "models"
    models.mkdir()
    inference = InferenceConfig(**values, model_repository=models, provider=Provider.CPU)
    return inference, lambda runtime: build_inference(inference, runtime)


@asynccontextmanager
async def running(service: str, folder: Path, **given_settings: Any) -> AsyncIterator[str]:
    """A real server of the service, with its address."""
    config, build = application_of(service, folder, **given_settings)
    runtime = Runtime(service)
    async with build(runtime) as application:
        server, address = await start_server(application, config, runtime)
        try:
            yield address
        finally:
            runtime.stopping.set()
            await server.stop(0)


@asynccontextmanager
async def bare(**given_settings: Any) -> AsyncIterator[str]:
    """A server with health only, for limits of the connection."""
    given_settings.setdefault("grpc_address", "127.0.0.1:0")
    application = Application(register=lambda server: None, services=(), policy={})
    server, address = await start_server(
        application, ServerConfig(**given_settings), Runtime("test")
    )
    try:
        yield address
    finally:
        await server.stop(None)


# --- messages -------------------------------------------------------------------------------------


def named(size_bytes: int) -> bytes:
    """A request of exactly this many bytes, whose first field is a name."""
    overhead = len(health_pb2.HealthCheckRequest(service="a" * size_bytes).SerializeToString())
    message = health_pb2.HealthCheckRequest(service="a" * (2 * size_bytes - overhead))
    serialized: bytes = message.SerializeToString()
    assert len(serialized) == size_bytes
    return serialized


@pytest.mark.parametrize("service", SERVICES)
async def test_a_message_of_the_limit_is_taken_and_one_byte_more_is_not(
    service: str, tmp_path: Path
) -> None:
    limit = 8192
    async with (
        running(service, tmp_path, max_message_bytes=limit) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary(GET[service])
        for size, too_large in (
            (limit - 1, False),
            (limit, False),
            (limit + 1, True),
            (100 * limit, True),
        ):
            code = await ended_with(call(named(size), timeout=SECONDS))
            assert (code is Code.RESOURCE_EXHAUSTED) is too_large, size


async def test_a_message_that_grows_when_it_is_unpacked_is_refused(tmp_path: Path) -> None:
    limit = 8192
    async with (
        running("registry", tmp_path, max_message_bytes=limit) as address,
        grpc.aio.insecure_channel(address, compression=grpc.Compression.Gzip) as channel,
    ):
        call: Any = channel.unary_unary(GET["registry"])
        for size, code in ((limit, Code.INVALID_ARGUMENT), (16 << 20, Code.RESOURCE_EXHAUSTED)):
            assert await ended_with(call(named(size), timeout=SECONDS)) is code


async def ended_with(call: Any) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call
    code: grpc.StatusCode = await call.code()
    return code


async def test_requests_that_need_no_key_are_small(tmp_path: Path) -> None:
    """Refused unread: bytes that are no message are not called malformed."""
    async with (
        running("inference", tmp_path) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        for method in ("ServerLive", "ServerReady"):
            call: Any = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            assert await ended_with(call(named(4096), timeout=SECONDS)) is Code.OK
            assert await ended_with(call(named(4097), timeout=SECONDS)) is Code.RESOURCE_EXHAUSTED
        check: Any = channel.unary_unary(CHECK)
        assert await ended_with(check(named(4096), timeout=SECONDS)) is Code.NOT_FOUND
        assert await ended_with(check(named(4097), timeout=SECONDS)) is Code.RESOURCE_EXHAUSTED
        assert await ended_with(check(b"\xff" * 4097, timeout=SECONDS)) is Code.RESOURCE_EXHAUSTED
        watch: Any = channel.unary_stream(WATCH)
        stream = watch(named(1 << 20), timeout=SECONDS)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream.read()
        assert error.value.code() is Code.RESOURCE_EXHAUSTED
        assert "at most 4096 bytes" in (error.value.details() or "")


async def test_requests_of_methods_that_are_always_answered_are_small(tmp_path: Path) -> None:
    """They have no place that is counted, so what they hold in memory is bounded by their size."""
    async with (
        running("inference", tmp_path) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        for method in ("ModelReady", "ModelMetadata", "ServerMetadata"):
            call: Any = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            of_the_limit = await ended_with(call(named(4096), timeout=SECONDS))
            assert of_the_limit is not Code.RESOURCE_EXHAUSTED, method
            assert await ended_with(call(named(4097), timeout=SECONDS)) is Code.RESOURCE_EXHAUSTED


async def test_a_watch_of_a_name_that_nothing_can_have_is_refused() -> None:
    async with bare() as address, grpc.aio.insecure_channel(address) as channel:
        watch: Any = channel.unary_stream(WATCH)
        assert await watch(named(256), timeout=SECONDS).read()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch(named(1024), timeout=SECONDS).read()
        assert error.value.code() is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(("rpcs", "watches"), [(2000, MAX_WATCHES), (8, 4)])
async def test_watches_of_health_leave_room_for_other_calls(rpcs: int, watches: int) -> None:
    async with (
        bare(max_concurrent_rpcs=rpcs, max_concurrent_streams=2000) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        watch: Any = channel.unary_stream(WATCH)
        watching = [watch(b"", timeout=SECONDS) for _ in range(watches)]
        for call in watching:
            assert await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch(b"", timeout=SECONDS).read()
        assert error.value.code() is Code.RESOURCE_EXHAUSTED
        assert f"at most {watches} Watch streams" in (error.value.details() or "")
        check: Any = channel.unary_unary(CHECK)
        assert await check(b"", timeout=SECONDS)
        watching[0].cancel()
        async with asyncio.timeout(SECONDS):
            served = False
            while not served:  # until the server knows that one has left
                with contextlib.suppress(grpc.aio.AioRpcError):
                    served = bool(await watch(b"", timeout=SECONDS).read())


async def test_metadata_above_the_limit_is_refused() -> None:
    async with (
        bare(max_metadata_bytes=4096) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary(CHECK)
        assert await call(b"", metadata=(("x-note", "a" * 2000),), timeout=SECONDS)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"", metadata=(("x-note", "a" * 5000),), timeout=SECONDS)
        assert error.value.code() is Code.RESOURCE_EXHAUSTED


# --- connections ----------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ENHANCE_YOUR_CALM = 11


def frame(kind: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame of the whole connection."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + bytes(4) + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    header = await reader.readexactly(9)
    return header[3], await reader.readexactly(int.from_bytes(header[:3], "big"))


@asynccontextmanager
async def tcp(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with closing(writer):
        yield reader, writer


async def greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the server speaks HTTP/2 on this connection, or has closed it."""
    try:
        writer.write(PREFACE + frame(SETTINGS))
        await writer.drain()
        kind, _ = await read_frame(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    return kind == SETTINGS


async def ended(reader: asyncio.StreamReader) -> bool:
    """Reads until the server closes the connection."""
    try:
        async with asyncio.timeout(SECONDS):
            while await reader.read(4096):
                pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("tls", [False, True])
async def test_connections_that_say_nothing_are_closed_and_disturb_nobody(
    tls: bool, tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"handshake_timeout_seconds": 0.5}
    authority = trustme.CA()
    if tls:
        certificate = authority.issue_cert("127.0.0.1")
        flags["tls_certificate"], flags["tls_key"] = tmp_path / "c.pem", tmp_path / "k.pem"
        certificate.cert_chain_pems[0].write_to_path(str(flags["tls_certificate"]))
        certificate.private_key_pem.write_to_path(str(flags["tls_key"]))
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with bare(**flags) as address:
        host, _, port = address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
        # Half of them begin, and stop in the middle of the first message.
        for _, writer in silent[::2]:
            writer.write(b"\x16\x03\x01" if tls else PREFACE[:5])
        channel = (
            grpc.aio.secure_channel(address, credentials)
            if tls
            else grpc.aio.insecure_channel(address)
        )
        async with channel:
            call: Any = channel.unary_unary(CHECK)
            assert await call(b"", timeout=SECONDS)
            assert all(await asyncio.gather(*(ended(reader) for reader, _ in silent)))
            assert await call(b"", timeout=SECONDS)
        for _, writer in silent:
            writer.close()


async def test_connections_above_the_limit_are_closed_until_others_leave() -> None:
    async with bare(max_connections=3) as address:
        async with tcp(address) as first, tcp(address) as second, tcp(address) as third:
            for connection in (first, second, third):
                assert await greeted(*connection)
            for _ in range(5):
                async with tcp(address) as extra:
                    assert not await greeted(*extra)
        async with asyncio.timeout(SECONDS):
            served = False
            while not served:
                async with tcp(address) as again:
                    served = await greeted(*again)


async def test_a_flood_of_pings_ends_the_connection() -> None:
    async with bare(min_ping_interval_seconds=300) as address, tcp(address) as (reader, writer):
        assert await greeted(reader, writer)
        writer.write(frame(PING, bytes(8)) * 20)
        await writer.drain()
        async with asyncio.timeout(SECONDS):
            while (received := await read_frame(reader))[0] != GOAWAY:
                pass
        assert int.from_bytes(received[1][4:8], "big") == ENHANCE_YOUR_CALM
        assert b"too_many_pings" in received[1]


async def test_pings_at_the_pace_that_was_set_do_not_end_the_connection() -> None:
    async with bare(min_ping_interval_seconds=0) as address, tcp(address) as (reader, writer):
        assert await greeted(reader, writer)
        for number in range(20):
            writer.write(frame(PING, number.to_bytes(8)))
            async with asyncio.timeout(SECONDS):
                while (received := await read_frame(reader)) != (PING, number.to_bytes(8)):
                    assert received[0] != GOAWAY


async def test_a_burst_of_calls_is_answered_or_refused_and_none_is_cancelled() -> None:
    """More than gRPC itself lets wait until the server has looked at them."""
    calls = 4000
    async with (
        bare(max_concurrent_streams=calls, max_concurrent_rpcs=calls // 2) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        check: Any = channel.unary_unary(CHECK)
        burst = [check(b"", timeout=SECONDS) for _ in range(calls)]
        codes = {await call.code() for call in burst}
    assert Code.OK in codes
    assert codes <= {Code.OK, Code.RESOURCE_EXHAUSTED}


async def test_probes_of_several_callers_at_once_are_answered_at_the_smallest_limit() -> None:
    async with bare(max_concurrent_rpcs=1) as address, contextlib.AsyncExitStack() as stack:
        # Without pools of their own these channels would share one connection.
        own = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(address, options=own) for _ in range(4)]
        checks: list[Any] = [
            (await stack.enter_async_context(channel)).unary_unary(CHECK) for channel in channels
        ]
        for check in checks:
            assert await check(b"", timeout=SECONDS)
        burst = [check(b"", timeout=SECONDS) for check in checks for _ in range(10)]
        assert {await call.code() for call in burst} == {Code.OK}


async def test_streams_above_the_limit_of_a_connection_wait_for_their_turn() -> None:
    async with (
        bare(max_concurrent_streams=2) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        watching = [watch(b"", timeout=SECONDS) for _ in range(2)]
        for call in watching:
            assert await call.read()
        check: Any = channel.unary_unary(CHECK)
        waiting = asyncio.ensure_future(check(b"", timeout=SECONDS))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await check(b"", timeout=0.2)
        assert error.value.code() is Code.DEADLINE_EXCEEDED
        assert not waiting.done()
        watching[0].cancel()
        assert await waiting


# --- bytes that are no request --------------------------------------------------------------------


def methods_of(service: str) -> dict[str, Any]:
    """The descriptor of each method that a server has, by path."""
    own = {"registry": registry_pb2, "trainer": trainer_pb2, "inference": grpc_service_pb2}
    found = {}
    for module in (own[service], health_pb2, reflection_pb2):
        file: Any = module.DESCRIPTOR
        for descriptor in file.services_by_name.values():
            # Python's copy of the Open Inference Protocol has another package than the wire.
            name = descriptor.full_name.replace("modelrail.oip.v2.", "inference.")
            for method in descriptor.methods:
                found[f"/{name}/{method.name}"] = method
    return found


INTEGERS = st.one_of(st.integers(0, 5), st.sampled_from([2**31 - 1, -1, -(2**31)]))
LONGS = st.one_of(INTEGERS, st.sampled_from([2**63 - 1, -(2**63), 2**40]))
NATURALS = st.one_of(st.integers(0, 5), st.sampled_from([2**31, 2**32 - 1]))
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "models/a", "models/a/versions/1", "models/a/aliases/b", "models/../a", "models/-",
            "trainingJobs/a", "blobs/" + "0" * 64, "blobs/sha256:" + "0" * 64, "../../etc/passwd",
            "a\x00b", "x" * 3000, "FP32", "BYTES", "' OR 1=1 --", "1", "99999999999999999999",
        ]
    ),
)  # fmt: skip
VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: INTEGERS,
    FieldDescriptor.CPPTYPE_INT64: LONGS,
    FieldDescriptor.CPPTYPE_UINT32: NATURALS,
    FieldDescriptor.CPPTYPE_UINT64: NATURALS,
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 9),
}


def put(draw: st.DrawFn, message: Any, depth: int) -> None:
    """Sets some fields of a message to values that are well typed and rarely meant."""
    for descriptor in message.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        repeated = getattr(descriptor, "is_repeated", False)
        kind = descriptor.message_type
        if kind is not None and kind.GetOptions().map_entry:
            if kind.fields_by_name["value"].message_type is None:
                continue
            put(draw, getattr(message, descriptor.name)[draw(TEXTS)], depth - 1)
        elif kind is not None:
            if depth > 0:
                target = getattr(message, descriptor.name)
                put(draw, target.add() if repeated else target, depth - 1)
                if not repeated:
                    target.SetInParent()
        else:
            values: Any = VALUES.get(descriptor.cpp_type, TEXTS)
            if descriptor.type == FieldDescriptor.TYPE_BYTES:
                values = st.binary(max_size=40)
            value = draw(values)
            if repeated:
                getattr(message, descriptor.name).extend([value] * draw(st.integers(1, 3)))
            else:
                setattr(message, descriptor.name, value)


def nested(levels: int) -> bytes:
    """Field 1, which holds field 1, and so on."""
    message = b""
    for _ in range(levels):
        message = tagged(1, message)
    return message


def tagged(number: int, content: bytes) -> bytes:
    """A field of bytes with any number, known to the message or not."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


@st.composite
def payloads(draw: st.DrawFn, descriptor: Any) -> bytes:
    """Bytes for a method: noise, or a message of its type, whole, cut, damaged or added to."""
    kind = draw(st.sampled_from(["noise", "whole", "cut", "flipped", "unknown", "deep"]))
    if kind == "noise":
        return draw(st.binary(max_size=120))
    if kind == "deep":
        return nested(draw(st.sampled_from([20, 99, 101, 150, 1000])))
    message = GetMessageClass(descriptor)()
    put(draw, message, 3)
    whole: bytes = message.SerializeToString()
    if kind == "unknown":
        return whole + tagged(20_000, bytes(draw(st.sampled_from([0, 1, 100_000]))))
    if not whole or kind == "whole":
        return whole
    position = draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        return whole[:position]
    return whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]


@pytest.fixture(scope="module", params=SERVICES)
def channel(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, grpc.Channel]]:
    """A service that runs in a thread of its own, as hypothesis calls from outside of any loop."""
    folder = tmp_path_factory.mktemp(request.param)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(
            running(request.param, folder, reflection=True)
        ) as address,
        grpc.insecure_channel(address) as opened,
    ):
        yield request.param, opened


@settings(
    max_examples=25,
    phases=(Phase.generate,),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_no_bytes_make_any_method_answer_internal(
    channel: tuple[str, grpc.Channel], data: st.DataObject
) -> None:
    service, opened = channel
    for path, method in methods_of(service).items():
        # gRPC itself lets a call without its one message wait for its deadline.
        fewest, most = (0, 3) if method.client_streaming else (1, 1)
        messages = data.draw(
            st.lists(payloads(method.input_type), min_size=fewest, max_size=most), label=path
        )
        assert ending(opened, path, messages) not in {
            Code.INTERNAL,
            Code.UNKNOWN,
            Code.DEADLINE_EXCEEDED,
            Code.UNAUTHENTICATED,
        }, path
    # And it lives.
    assert ending(opened, CHECK, [b""]) is None


def ending(opened: grpc.Channel, path: str, messages: list[bytes]) -> grpc.StatusCode | None:
    """Sends messages to a method of any kind; its code, or None once it has answered."""
    method: Any = opened.stream_stream(path)
    call = method(iter(messages), timeout=SECONDS)
    try:
        next(call, None)
    except grpc.RpcError as error:
        code = error.code()
        return grpc.StatusCode(code)
    call.cancel()
    return None
