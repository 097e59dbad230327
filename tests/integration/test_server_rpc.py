"""RPCs of a real server: errors, details, ids, policy, keys, limits, health, reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from modelrail.registry.v1.registry_pb2 import GetModelRequest, Model
from modelrail_server.access.api_keys import new_key, write_keys
from modelrail_server.address import BindError
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ServerConfig
from modelrail_server.context import Context, identity, request_id, time_remaining
from modelrail_server.errors import (
    FieldViolation,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from modelrail_server.policy import Permission
from modelrail_server.server import start_server

SERVICE = "test.v1.Echo"
METHODS = ("Unary", "ServerStream", "ClientStream", "Bidi", "Writer", "Unlisted")
POLICY = {f"/{SERVICE}/{method}": Permission.READ for method in METHODS if method != "Unlisted"}
MALFORMED = b"\x0a\xff"


class Echo:
    """A service whose requests say what shall happen."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.release = asyncio.Event()
        self.running = 0
        self.enough = asyncio.Event()

    async def act(self, name: str, context: Context) -> Model:
        match name:
            case "not-found":
                raise NotFound("no such model", resource="models/a", reason="NO_MODEL", model="a")
            case "invalid":
                violations = [FieldViolation("name", "expected a name, got 'invalid'")]
                raise InvalidArgument("2 fields are wrong", violations=violations)
            case "busy":
                raise Unavailable("later", retry_after_seconds=0.01)
            case "bug":
                raise RuntimeError("the secret is 1234")
            case "group":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.act("not-found", context))
            case "mixed-group":
                raise ExceptionGroup("secret", [NotFound("x"), RuntimeError("the secret is 1234")])
            case "abort":
                await context.abort(grpc.StatusCode.DATA_LOSS, "my own words")
            case "code":
                context.set_code(grpc.StatusCode.OUT_OF_RANGE)
            case "stray-cancel":
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            case "wait":
                self.running += 1
                self.entered.set()
                if self.running == 2:
                    self.enough.set()
                try:
                    await self.release.wait()
                finally:
                    self.running -= 1
                    self.left.set()
        return Model(
            name=name,
            uid=request_id(),
            description=identity().name,
            etag="deadline" if time_remaining() is not None else "",
        )

    async def Unary(self, request: GetModelRequest, context: Context) -> Model:  # noqa: N802
        return await self.act(request.name, context)

    async def ServerStream(  # noqa: N802
        self, request: GetModelRequest, context: Context
    ) -> AsyncIterator[Model]:
        yield Model(name="first")
        yield await self.act(request.name, context)

    async def ClientStream(  # noqa: N802
        self, requests: AsyncIterator[GetModelRequest], context: Context
    ) -> Model:
        return await self.act("+".join([request.name async for request in requests]), context)

    async def Bidi(  # noqa: N802
        self, requests: AsyncIterator[GetModelRequest], context: Context
    ) -> AsyncIterator[Model]:
        async for request in requests:
            yield await self.act(request.name, context)

    async def Writer(self, request: GetModelRequest, context: Context) -> None:  # noqa: N802
        await context.write(Model(name="first"))
        await context.write(await self.act(request.name, context))

    def register(self, server: grpc.aio.Server) -> None:
        makers: dict[str, Callable[..., Any]] = {
            "Unary": grpc.unary_unary_rpc_method_handler,
            "ServerStream": grpc.unary_stream_rpc_method_handler,
            "ClientStream": grpc.stream_unary_rpc_method_handler,
            "Bidi": grpc.stream_stream_rpc_method_handler,
            "Writer": grpc.unary_stream_rpc_method_handler,
        }
        handlers = {
            name: make(
                getattr(self, name),
                request_deserializer=GetModelRequest.FromString,
                response_serializer=Model.SerializeToString,
            )
            for name, make in makers.items()
        }
        handlers["Unlisted"] = handlers["Unary"]
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class Caller:
    """The service's methods over one channel; requests are names, or raw bytes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def _kind(self, kind: str, method: str) -> Any:
        return getattr(self.channel, kind)(
            f"/{SERVICE}/{method}" if "/" not in method else method,
            request_serializer=lambda request: (
                request
                if isinstance(request, bytes)
                else GetModelRequest(name=request).SerializeToString()
            ),
            response_deserializer=Model.FromString,
        )

    def unary(self, request: str | bytes, method: str = "Unary", **options: Any) -> Any:
        return self._kind("unary_unary", method)(request, **options)

    def server_stream(self, request: str | bytes, method: str = "ServerStream") -> Any:
        return self._kind("unary_stream", method)(request)

    def client_stream(self, *requests: str | bytes) -> Any:
        return self._kind("stream_unary", "ClientStream")(iter(requests))

    def bidi(self, *requests: str | bytes) -> Any:
        return self._kind("stream_stream", "Bidi")(iter(requests))


class Serving:
    def __init__(self, echo: Echo, runtime: Runtime, caller: Caller, address: str) -> None:
        self.echo, self.runtime, self.caller, self.address = echo, runtime, caller, address

    def sample(self, name: str, **labels: str) -> float:
        return self.runtime.metrics.get_sample_value(name, labels) or 0.0

    def handled(self, method: str, code: str) -> float:
        labels = {"grpc_service": SERVICE, "grpc_method": method, "grpc_code": code}
        return self.sample("grpc_server_handled_total", **labels)


Serve = Callable[..., AbstractAsyncContextManager[Serving]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def serving(
        *,
        descriptors: tuple[descriptor_pb2.FileDescriptorProto, ...] = (),
        services: tuple[str, ...] = (SERVICE,),
        **settings: Any,
    ) -> AsyncIterator[Serving]:
        echo, runtime = Echo(), Runtime("test")
        application = Application(
            register=echo.register, services=services, policy=POLICY, descriptors=descriptors
        )
        settings.setdefault("grpc_address", f"unix:{tmp_path}/rpc.sock")
        config = ServerConfig(**settings)
        server, address = await start_server(application, config, runtime)
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield Serving(echo, runtime, Caller(channel), address)
        finally:
            await server.stop(None)

    return serving


@pytest.fixture
async def serving(serve: Serve) -> AsyncIterator[Serving]:
    async with serve() as started:
        yield started


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def stream_failure(call: Any) -> tuple[list[str], grpc.aio.AioRpcError]:
    names: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError) as error:  # noqa: PT012
        async for response in call:
            names.append(response.name)  # noqa: PERF401 the error ends the loop
    return names, error.value


def detail(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")


def health_stub(channel: grpc.aio.Channel) -> Any:
    """The stub, whose types know only channels that are not asynchronous."""
    stub: Any = health_pb2_grpc.HealthStub
    return stub(channel)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop run until a counter, which has no event to wait for, has its value."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def metadata(error: Any) -> dict[str, Any]:
    return dict(error.trailing_metadata())


async def test_every_kind_of_method_answers(serving: Serving) -> None:
    caller = serving.caller
    assert (await caller.unary("a")).name == "a"
    assert [r.name async for r in caller.server_stream("a")] == ["first", "a"]
    assert [r.name async for r in caller.server_stream("a", "Writer")] == ["first", "a"]
    assert (await caller.client_stream("a", "b")).name == "a+b"
    assert [r.name async for r in caller.bidi("a", "b")] == ["a", "b"]
    for method in METHODS[:-1]:
        assert serving.handled(method, "OK") == 1


async def test_an_error_of_a_unary_call_is_told_with_its_details(serving: Serving) -> None:
    error = await failure(serving.caller.unary("not-found"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no such model"
    info = detail(error, ErrorInfo)
    assert (info.reason, info.domain) == ("NO_MODEL", "modelrail.test")
    assert dict(info.metadata) == {"model": "a"}
    assert detail(error, RequestInfo).request_id == metadata(error)["x-request-id"]
    error = await failure(serving.caller.unary("invalid"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail(error, BadRequest).field_violations[0].field == "name"


@pytest.mark.parametrize("method", ["ServerStream", "Writer"])
async def test_an_error_in_the_middle_of_a_stream_comes_after_what_was_sent(
    serving: Serving, method: str
) -> None:
    names, error = await stream_failure(serving.caller.server_stream("not-found", method))
    assert names == ["first"]
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert detail(error, ErrorInfo).reason == "NO_MODEL"
    assert serving.handled(method, "NOT_FOUND") == 1


async def test_errors_of_client_streams_and_bidi_are_told(serving: Serving) -> None:
    assert (await failure(serving.caller.client_stream("bug"))).code() is grpc.StatusCode.INTERNAL
    names, error = await stream_failure(serving.caller.bidi("a", "not-found", "b"))
    assert names == ["a"]
    assert detail(error, ErrorInfo).reason == "NO_MODEL"


@pytest.mark.parametrize("name", ["bug", "mixed-group", "stray-cancel"])
async def test_a_defect_answers_internal_error_and_nothing_else(
    serving: Serving, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = await failure(serving.caller.unary(name, timeout=10))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "secret" not in str(metadata(error)) + str(rpc_status.from_call(error))  # type: ignore[arg-type]
    output = capsys.readouterr()
    assert "rpc failed" in output.out + output.err


async def test_an_error_out_of_a_task_group_is_told(serving: Serving) -> None:
    assert (await failure(serving.caller.unary("group"))).code() is grpc.StatusCode.NOT_FOUND


async def test_a_servicer_may_answer_by_itself(serving: Serving) -> None:
    error = await failure(serving.caller.unary("abort"))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "my own words")
    assert metadata(error)["x-request-id"]
    await until(lambda: serving.handled("Unary", "DATA_LOSS") == 1)
    error = await failure(serving.caller.unary("code"))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert serving.handled("Unary", "OUT_OF_RANGE") == 1


async def test_a_retry_delay_is_told_to_programs_and_to_grpc_itself(serving: Serving) -> None:
    error = await failure(serving.caller.unary("busy"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert metadata(error)["grpc-retry-pushback-ms"] == "10"


async def test_bytes_that_are_no_message_are_the_callers_mistake(serving: Serving) -> None:
    caller = serving.caller
    error = await failure(caller.unary(MALFORMED))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail(error, ErrorInfo).reason == "MALFORMED_MESSAGE"
    error = await failure(caller.client_stream("a", MALFORMED))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    names, error = await stream_failure(caller.bidi("a", MALFORMED))
    assert names == ["a"]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    names, error = await stream_failure(caller.server_stream(b"\x0a\x02\xff\xfe"))
    assert names == []
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_well_formed_request_id_is_adopted_and_echoed(serving: Serving) -> None:
    call = serving.caller.unary("a", metadata=(("x-request-id", "job-7/epoch:3"),))
    assert (await call).uid == "job-7/epoch:3"
    assert dict(await call.trailing_metadata())["x-request-id"] == "job-7/epoch:3"


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, 'a"b', "a%0a"])
async def test_any_other_request_id_is_replaced(serving: Serving, sent: str) -> None:
    model = await serving.caller.unary("a", metadata=(("x-request-id", sent),))
    assert model.uid != sent
    assert len(model.uid) == 32


async def test_a_servicer_sees_the_deadline(serving: Serving) -> None:
    assert (await serving.caller.unary("a", timeout=30)).etag == "deadline"
    assert (await serving.caller.unary("a")).etag == ""


async def test_cancellation_reaches_the_servicer(serving: Serving) -> None:
    call = serving.caller.unary("wait")
    await serving.echo.entered.wait()
    call.cancel()
    async with asyncio.timeout(10):
        await serving.echo.left.wait()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: serving.handled("Unary", "CANCELLED") == 1)
    assert serving.handled("Unary", "INTERNAL") == 0


async def test_cancelling_a_stream_closes_the_servicers_generator(serving: Serving) -> None:
    call = serving.caller.server_stream("wait")
    assert (await call.read()).name == "first"
    await serving.echo.entered.wait()
    call.cancel()
    async with asyncio.timeout(10):
        await serving.echo.left.wait()


async def test_a_method_without_a_policy_row_is_denied(serving: Serving) -> None:
    error = await failure(serving.caller.unary("a", "Unlisted"))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert detail(error, ErrorInfo).reason == "NO_POLICY"


@pytest.mark.parametrize(
    "path", ["/x.Y/Z", f"/{SERVICE}/unary", f"/{SERVICE}/Unary/", f"//{SERVICE}/Unary"]
)
async def test_unknown_methods_are_unimplemented_and_share_one_label(
    serving: Serving, path: str
) -> None:
    error = await failure(serving.caller.unary("a", path))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    labels = {"grpc_service": "unknown", "grpc_method": "unknown"}
    assert serving.sample("grpc_server_started_total", **labels) == 1
    services = {
        sample.labels["grpc_service"]
        for family in serving.runtime.metrics.collect()
        for sample in family.samples
        if "grpc_service" in sample.labels
    }
    assert services == {"unknown"}


async def test_a_message_that_is_too_large_is_refused(serve: Serve) -> None:
    async with serve(max_message_bytes=4096) as serving:
        assert (await serving.caller.unary("a" * 2000)).name
        error = await failure(serving.caller.unary("a" * 5000))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def _fill(serving: Serving, places: int) -> list[asyncio.Future[Any]]:
    """Starts calls that wait in the servicer, until every place is taken."""
    enough = asyncio.ensure_future(serving.echo.enough.wait())
    running = [asyncio.ensure_future(serving.caller.unary("wait")) for _ in range(places)]
    while not enough.done():
        ended, _ = await asyncio.wait([enough, *running], return_when=asyncio.FIRST_COMPLETED)
        # The place of a call that has ended for the client is free only when the server knows it.
        for index, call in enumerate(running):
            if call in ended:
                assert (await failure(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                running[index] = asyncio.ensure_future(serving.caller.unary("wait"))
    return running


async def test_two_waves_over_the_limit_of_concurrent_calls(serve: Serve) -> None:
    async with serve(max_concurrent_rpcs=2) as serving:
        echo = serving.echo
        for _ in range(2):
            running = await _fill(serving, 2)
            errors = [await failure(serving.caller.unary("a")) for _ in range(6)]
            assert {e.code() for e in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            echo.release.set()
            await asyncio.gather(*running)
            echo.release.clear()
            echo.enough.clear()


async def test_a_full_server_says_when_to_come_again_and_goes_on_answering_health(
    serve: Serve,
) -> None:
    async with serve(max_concurrent_rpcs=2) as serving:
        running = await _fill(serving, 2)
        error = await failure(serving.caller.unary("a"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(error, ErrorInfo).reason == "TOO_MANY_CALLS"
        assert detail(error, RetryInfo).retry_delay.ToMilliseconds() == 1000
        assert ("grpc-retry-pushback-ms", "1000") in list(error.trailing_metadata())
        health: Any = health_pb2_grpc.HealthStub(serving.caller.channel)
        for _ in range(5):
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert serving.sample("modelrail_refused_calls_total", reason="TOO_MANY_CALLS") >= 1
        serving.echo.release.set()
        await asyncio.gather(*running)


async def test_a_taken_address_is_an_error_with_its_name(serve: Serve) -> None:
    async with serve(grpc_address="127.0.0.1:0") as serving:
        with pytest.raises(BindError, match=f"cannot listen on {serving.address}"):
            async with serve(grpc_address=serving.address):
                pass


# --- keys ---------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    reader, reader_record = new_key("reader", [Permission.READ])
    writer, writer_record = new_key("writer", [Permission.WRITE])
    file = tmp_path / "keys.json"
    write_keys(file, [reader_record, writer_record])
    return file, {"reader": reader, "writer": writer}


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def test_keys_identify_and_permit(serve: Serve, keys: tuple[Path, dict[str, str]]) -> None:
    file, texts = keys
    async with serve(api_keys_file=file) as serving:
        caller = serving.caller
        model = await caller.unary("a", metadata=bearer(texts["reader"]))
        assert model.description == "reader"
        for sent, reason in ((None, "NO_KEY"), (bearer(texts["reader"] + "x"), "WRONG_KEY")):
            error = await failure(caller.unary("a", metadata=sent))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert detail(error, ErrorInfo).reason == reason
            assert serving.sample("modelrail_auth_failures_total", reason=reason) == 1
        error = await failure(caller.unary("a", metadata=bearer(texts["writer"])))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert detail(error, ErrorInfo).metadata["permission"] == "read"


async def test_existence_is_told_only_to_callers_with_a_key(
    serve: Serve, keys: tuple[Path, dict[str, str]]
) -> None:
    file, texts = keys
    async with serve(api_keys_file=file) as serving:
        error = await failure(serving.caller.unary("a", "/x.Y/Z"))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        error = await failure(serving.caller.unary("a", "/x.Y/Z", metadata=bearer(texts["reader"])))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_streams_are_refused_before_their_first_message(
    serve: Serve, keys: tuple[Path, dict[str, str]]
) -> None:
    async with serve(api_keys_file=keys[0]) as serving:
        names, error = await stream_failure(serving.caller.bidi("wait"))
        assert (names, error.code()) == ([], grpc.StatusCode.UNAUTHENTICATED)
        assert (await failure(serving.caller.client_stream("wait"))).code() is error.code()
        assert not serving.echo.entered.is_set()


# --- health and reflection ------------------------------------------------------------------------


async def test_health_answers_for_the_process_each_service_and_each_part(
    serve: Serve, keys: tuple[Path, dict[str, str]]
) -> None:
    async with serve(api_keys_file=keys[0]) as serving:
        stub = health_stub(serving.caller.channel)
        serving.runtime.health.set("infer/digits", False)
        states = health_pb2.HealthCheckResponse.ServingStatus
        for name, state in (("", "SERVING"), (SERVICE, "SERVING"), ("infer/digits", "NOT_SERVING")):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert states.Name(answer.status) == state
        error = await failure(stub.Check(health_pb2.HealthCheckRequest(service="x")))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_health_watch_follows_changes_and_ends_with_the_server(serving: Serving) -> None:
    health = serving.runtime.health
    states = health_pb2.HealthCheckResponse
    stub = health_stub(serving.caller.channel)
    stream = stub.Watch(health_pb2.HealthCheckRequest(service="infer/digits"))
    assert (await stream.read()).status == states.SERVICE_UNKNOWN
    health.set("infer/digits", True)
    assert (await stream.read()).status == states.SERVING
    health.drain()
    assert (await stream.read()).status == states.NOT_SERVING
    health.set("infer/digits", True)
    health.close()
    assert await stream.read() is grpc.aio.EOF


async def reflected(channel: grpc.aio.Channel, **request: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    call = stub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(**request)])
    )
    return await call.read()


async def refused_reflection(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """Asks nothing: of a message that comes too late gRPC's client says INTERNAL."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    return (await failure(stub(channel).ServerReflectionInfo().read())).code()


async def test_reflection_shows_the_public_names_with_what_they_import(serve: Serve) -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name="public.proto", package="test.v1", dependency=["google/protobuf/timestamp.proto"]
    )
    message = file.message_type.add(name="Ping")
    message.field.add(
        name="time", number=1, type=11, label=1, type_name=".google.protobuf.Timestamp"
    )
    service = file.service.add(name="Echo")
    service.method.add(name="Unary", input_type=".test.v1.Ping", output_type=".test.v1.Ping")
    async with serve(reflection=True, descriptors=(file,)) as serving:
        channel = serving.caller.channel
        listed = await reflected(channel, list_services="")
        names = {service.name for service in listed.list_services_response.service}
        assert names == {
            SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip
        found = await reflected(channel, file_containing_symbol=SERVICE)
        shown = found.file_descriptor_response.file_descriptor_proto
        assert descriptor_pb2.FileDescriptorProto.FromString(shown[0]) == file
        time = await reflected(channel, file_by_filename="google/protobuf/timestamp.proto")
        assert time.file_descriptor_response.file_descriptor_proto
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("public.proto")


async def test_reflection_is_off_without_its_flag_and_needs_a_key_where_there_are_keys(
    serve: Serve, serving: Serving, tmp_path: Path, keys: tuple[Path, dict[str, str]]
) -> None:
    code = await refused_reflection(serving.caller.channel)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    settings = {"reflection": True, "api_keys_file": keys[0], "services": ()}
    async with serve(grpc_address=f"unix:{tmp_path}/2.sock", **settings) as guarded:
        code = await refused_reflection(guarded.caller.channel)
        assert code is grpc.StatusCode.UNAUTHENTICATED
