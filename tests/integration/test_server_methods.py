"""How services register their methods, and methods whose servicers take and give bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from modelrail.registry.v1.registry_pb2 import GetModelRequest, Model
from modelrail.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ServerConfig
from modelrail_server.context import Context, request_id
from modelrail_server.policy import Permission
from modelrail_server.rpc.handlers import message_parser
from modelrail_server.server import start_server

SERVICE = "test.v1.Raw"
REQUEST = GetModelRequest(name="models/a").SerializeToString()
MALFORMED = b"\x0a\xff"

Register = Callable[[Any], None]
Serve = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]

parse = message_parser(GetModelRequest.FromString)


async def unary(request: bytes, context: Context) -> bytes:
    assert type(request) is bytes
    return Model(name=parse(request).name, uid=request_id()).SerializeToString()


async def parsed(request: GetModelRequest, context: Context) -> Model:
    return Model(name=request.name)


async def bidi(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    async for request in requests:
        yield await unary(request, context)


async def reader(requests: object, context: Context) -> None:
    """Reads and writes through the context, without a generator for each direction."""
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(await unary(request, context))


def messages(make: Any, behavior: Any) -> Any:
    return make(behavior, GetModelRequest.FromString, Model.SerializeToString)


HANDLERS = {
    "Unary": messages(grpc.unary_unary_rpc_method_handler, unary),
    "Parsed": messages(grpc.unary_unary_rpc_method_handler, parsed),
    "Bidi": messages(grpc.stream_stream_rpc_method_handler, bidi),
    "Reader": messages(grpc.stream_stream_rpc_method_handler, reader),
}
RAW = frozenset(f"/{SERVICE}/{method}" for method in ("Unary", "Bidi", "Reader"))


def by_path(server: Any) -> None:
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, HANDLERS),))


def by_name(server: Any) -> None:
    server.add_registered_method_handlers(SERVICE, HANDLERS)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def serving(
        register: Register = by_path, raw_methods: frozenset[str] = RAW
    ) -> AsyncIterator[grpc.aio.Channel]:
        application = Application(
            register=register,
            services=(SERVICE,),
            policy={f"/{SERVICE}/{method}": Permission.READ for method in HANDLERS},
            raw_methods=raw_methods,
        )
        config = ServerConfig(grpc_address=f"unix:{tmp_path}/raw.sock")
        server, address = await start_server(application, config, Runtime("test"))
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield channel
        finally:
            await server.stop(None)

    return serving


def reason(error: grpc.aio.AioRpcError) -> str:
    trailers = dict(error.trailing_metadata())
    info = ErrorInfo()
    Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(info)
    return info.reason


@pytest.mark.parametrize("register", [by_path, by_name])
async def test_methods_are_served_however_they_were_registered(
    serve: Serve, register: Register
) -> None:
    async with serve(register) as channel:
        for method in ("Unary", "Parsed"):
            call: Any = channel.unary_unary(f"/{SERVICE}/{method}")
            assert Model.FromString(await call(REQUEST)).name == "models/a"


async def test_a_raw_method_takes_and_gives_bytes_and_has_a_request_id(serve: Serve) -> None:
    async with serve() as channel:
        method: Any = channel.unary_unary(f"/{SERVICE}/Unary")
        call = method(REQUEST, metadata=(("x-request-id", "job-7"),))
        assert Model.FromString(await call) == Model(name="models/a", uid="job-7")
        assert dict(await call.trailing_metadata())["x-request-id"] == "job-7"


async def test_a_raw_method_tells_a_request_id_only_to_who_sent_one_or_met_an_error(
    serve: Serve,
) -> None:
    async with serve() as channel:
        method: Any = channel.unary_unary(f"/{SERVICE}/Unary")
        call = method(REQUEST)
        await call
        assert "x-request-id" not in dict(await call.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"\xff\xff")
        assert dict(caught.value.trailing_metadata())["x-request-id"]
        parsed: Any = channel.unary_unary(f"/{SERVICE}/Parsed")
        call = parsed(REQUEST)
        await call
        assert dict(await call.trailing_metadata())["x-request-id"]


@pytest.mark.parametrize("method", ["Bidi", "Reader"])
async def test_a_raw_stream_takes_and_gives_bytes(serve: Serve, method: str) -> None:
    async with serve() as channel:
        stream: Any = channel.stream_stream(f"/{SERVICE}/{method}")
        answers = [Model.FromString(answer) async for answer in stream(iter([REQUEST] * 3))]
        assert [answer.name for answer in answers] == ["models/a"] * 3


async def test_bytes_that_are_no_message_are_the_callers_mistake_to_raw_methods_too(
    serve: Serve,
) -> None:
    async with serve() as channel:
        method: Any = channel.unary_unary(f"/{SERVICE}/Unary")
        with pytest.raises(grpc.aio.AioRpcError) as unary_error:
            await method(MALFORMED)
        stream: Any = channel.stream_stream(f"/{SERVICE}/Bidi")
        call = stream(iter([REQUEST, MALFORMED]))
        assert Model.FromString(await call.read()).name == "models/a"
        with pytest.raises(grpc.aio.AioRpcError) as stream_error:
            await call.read()
        for error in (unary_error.value, stream_error.value):
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert reason(error) == "MALFORMED_MESSAGE"


async def test_a_raw_method_that_nobody_serves_stops_the_start(serve: Serve) -> None:
    with pytest.raises(ValueError, match=r"raw method '/test.v1.Raw/Missing'"):
        async with serve(raw_methods=frozenset({f"/{SERVICE}/Missing"})):
            pass


async def test_a_method_that_a_servicer_left_out_is_one_that_this_server_does_not_have(
    serve: Serve,
) -> None:
    """Generated servicers come with a plain function for each method, which only refuses."""

    def left_out(server: Any) -> None:
        inherited = RegistryServiceServicer.GetModel
        handler = messages(grpc.unary_unary_rpc_method_handler, inherited)
        server.add_registered_method_handlers(SERVICE, {**HANDLERS, "Parsed": handler})

    async with serve(left_out) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/Parsed")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(REQUEST)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert reason(refused.value) == "UNKNOWN_METHOD"
