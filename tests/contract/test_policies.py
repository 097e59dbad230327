"""Every RPC of every service has a permission, and real servers ask for it, on every path."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from modelrail.oip.reflection import public_file_descriptors
from modelrail.registry.v1 import registry_pb2
from modelrail.trainer.v1 import trainer_pb2
from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.provider import Provider
from modelrail_inference.protocol.policy import POLICY as INFERENCE_POLICY
from modelrail_inference.service import build as build_inference
from modelrail_registry.__main__ import build as build_registry
from modelrail_registry.config import RegistryConfig
from modelrail_registry.protocol.policy import POLICY as REGISTRY_POLICY
from modelrail_server.access.api_keys import new_key, write_keys
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ServerConfig
from modelrail_server.policy import Permission, Policy
from modelrail_server.server import start_server
from modelrail_server.standard.health import HEALTH_POLICY
from modelrail_server.standard.reflection import REFLECTION_POLICY
from modelrail_trainer.__main__ import build_trainer
from modelrail_trainer.config import TrainerConfig
from modelrail_trainer.protocol.policy import POLICY as TRAINER_POLICY

Code = grpc.StatusCode
GRANTED = (Permission.READ, Permission.WRITE, Permission.INFER, Permission.ADMIN)
SECONDS = 20.0


def paths_of(*files: Any) -> frozenset[str]:
    """The wire paths of all methods in proto files, read from their descriptors."""
    paths = set()
    for file in files:
        proto = file
        if not isinstance(file, FileDescriptorProto):
            proto = FileDescriptorProto()
            file.CopyToProto(proto)
        for service in proto.service:
            full_name = f"{proto.package}.{service.name}"
            paths |= {f"/{full_name}/{method.name}" for method in service.method}
    return frozenset(paths)


STANDARD_PATHS = paths_of(health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
TABLES: dict[str, tuple[Policy, frozenset[str]]] = {
    "registry": (REGISTRY_POLICY, paths_of(registry_pb2.DESCRIPTOR)),
    "trainer": (TRAINER_POLICY, paths_of(trainer_pb2.DESCRIPTOR)),
    "inference": (INFERENCE_POLICY, paths_of(*public_file_descriptors())),
    "health and reflection": ({**HEALTH_POLICY, **REFLECTION_POLICY}, STANDARD_PATHS),
}
SERVICES = ("registry", "trainer", "inference")


@pytest.mark.parametrize("name", TABLES)
def test_every_rpc_has_a_row_and_every_row_an_rpc(name: str) -> None:
    policy, paths = TABLES[name]
    assert paths
    assert policy.keys() == paths


def test_only_liveness_and_health_are_public() -> None:
    public = {
        path
        for policy, _ in TABLES.values()
        for path, permission in policy.items()
        if permission is Permission.PUBLIC
    }
    assert public == {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_what_changes_something_is_not_granted_by_read(name: str) -> None:
    changes = ("Create", "Update", "Delete", "Cancel", "Upload", "RepositoryModel")
    changing = {
        path: permission
        for path, permission in TABLES[name][0].items()
        if path.rpartition("/")[2].startswith(changes)
    }
    assert changing
    assert not {Permission.READ, Permission.PUBLIC} & set(changing.values())


# --- real servers ---------------------------------------------------------------------------------


class DispatchLog:
    """A server that notes the path of each call that gets into a servicer."""

    def __init__(self, server: grpc.aio.Server, reached: list[str]) -> None:
        self._server, self._reached = server, reached

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        noting = self._noting

        class Noting(grpc.GenericRpcHandler):
            def __init__(self, handler: Any) -> None:
                self._handler = handler

            def service(self, handler_call_details: Any) -> Any:
                found = self._handler.service(handler_call_details)
                return found and noting(found, handler_call_details.method)

        self._server.add_generic_rpc_handlers(tuple(map(Noting, handlers)))

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        noted = {
            method: self._noting(handler, f"/{service}/{method}")
            for method, handler in handlers.items()
        }
        self._server.add_registered_method_handlers(service, noted)

    def _noting(self, handler: Any, path: str) -> Any:
        kind = {
            (False, False): "unary_unary",
            (False, True): "unary_stream",
            (True, False): "stream_unary",
            (True, True): "stream_stream",
        }[handler.request_streaming, handler.response_streaming]
        behavior, reached = getattr(handler, kind), self._reached

        async def answer(request: Any, context: Any) -> Any:
            reached.append(path)
            return await behavior(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            reached.append(path)
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response

        noted = stream if inspect.isasyncgenfunction(behavior) else answer
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            noted, handler.request_deserializer, handler.response_serializer
        )


@dataclass
class Serving:
    """A running server with keys, one for each set of permissions that a test asks for."""

    service: str
    channel: grpc.aio.Channel
    keys: dict[frozenset[Permission], str]
    reached: list[str] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        return {**TABLES[self.service][0], **HEALTH_POLICY, **REFLECTION_POLICY}

    def call(self, path: str, authorization: str | None = None) -> Any:
        """Calls any method: on the wire every kind of method is a stream of messages."""
        metadata = (("authorization", authorization),) if authorization is not None else ()
        return self.channel.stream_stream(path)(metadata=metadata, timeout=SECONDS)

    def bearer(self, *permissions: Permission) -> str:
        return f"Bearer {self.keys[frozenset(permissions)]}"


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """How a call ended to which no message was sent: code, text and reason."""
    code = await call.code()
    trailers = dict(await call.trailing_metadata())
    info = ErrorInfo()
    if "grpc-status-details-bin" in trailers:
        for detail in Status.FromString(trailers["grpc-status-details-bin"]).details:
            detail.Unpack(info)
            if info.reason:
                break
    return code, await call.details(), info.reason


async def first_word(call: Any) -> grpc.StatusCode | None:
    """Sends an empty message; how the call ended, or None when the servicer answered at once."""
    try:
        await call.write(b"")
        await call.done_writing()
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    call.cancel()
    return None


def application_of(
    service: str, folder: Path, settings: dict[str, Any]
) -> tuple[ServerConfig, Callable[[Runtime], AbstractAsyncContextManager[Application]]]:
    """The settings of a service, and what builds it: nothing outside of `folder` is needed."""
    settings = {"data_dir": folder / "data", "grpc_address": f"unix:{folder}/s", **settings}
    if service == "registry":
        registry = RegistryConfig(**settings)
        return registry, lambda runtime: build_registry(registry, runtime)
    if service == "trainer":
        trainer = TrainerConfig(**settings, registry=f"unix:{folder}/nobody")
        return trainer, lambda runtime: build_trainer(
            trainer, runtime, worker_command=("false",), environ={}
        )
    (folder / "models").mkdir()
    inference = InferenceConfig(
        **settings, model_repository=folder / "models", provider=Provider.CPU
    )
    return inference, lambda runtime: build_inference(inference, runtime)


@asynccontextmanager
async def running(service: str, folder: Path) -> AsyncIterator[Serving]:
    keys, records = {}, []
    for number, permissions in enumerate(
        [GRANTED, *((one,) for one in GRANTED)]
        + [tuple(other for other in GRANTED if other is not one) for one in GRANTED]
    ):
        key, record = new_key(f"key-{number}", permissions)
        keys[frozenset(permissions)] = key
        records.append(record)
    write_keys(folder / "keys.json", records)
    config, build = application_of(
        service, folder, {"api_keys_file": folder / "keys.json", "reflection": True}
    )
    runtime = Runtime(service)
    reached: list[str] = []
    async with build(runtime) as application:
        register = application.register
        noted = dataclasses.replace(
            application,
            register=lambda server: register(DispatchLog(server, reached)),  # type: ignore[arg-type]
        )
        server, address = await start_server(noted, config, runtime)
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield Serving(service, channel, keys, reached)
        finally:
            runtime.stopping.set()
            await server.stop(0)


@pytest.fixture(params=SERVICES)
async def serving(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Serving]:
    async with running(request.param, tmp_path) as started:
        yield started


async def test_no_method_answers_without_credentials(serving: Serving) -> None:
    guarded = [path for path, need in serving.policy.items() if need is not Permission.PUBLIC]
    # What does not exist is answered like what does.
    said = {path: await refusal(serving.call(path)) for path in [*guarded, "/x.Y/Z"]}
    assert {code for code, _, _ in said.values()} == {Code.UNAUTHENTICATED}
    assert {reason for _, _, reason in said.values()} == {"NO_KEY"}
    assert len({text for _, text, _ in said.values()}) == 1
    for authorization in ("Bearer mrk_key-0_wrong", "Bearer mrk_nobody_x", "Basic eDp5", "Bearer "):
        wrong = {path: await refusal(serving.call(path, authorization)) for path in guarded}
        assert set(wrong.values()) == {(Code.UNAUTHENTICATED, "the key is not valid", "WRONG_KEY")}
    assert serving.reached == []


async def test_public_methods_answer_everybody(serving: Serving) -> None:
    public = [path for path, need in serving.policy.items() if need is Permission.PUBLIC]
    assert public
    for path in public:
        for authorization in (None, "Bearer nonsense"):
            assert await first_word(serving.call(path, authorization)) is None


async def test_no_method_answers_a_key_that_has_every_permission_but_its_own(
    serving: Serving,
) -> None:
    for path, need in serving.policy.items():
        if need is Permission.PUBLIC:
            continue
        others = serving.bearer(*(one for one in GRANTED if one is not need))
        code, text, reason = await refusal(serving.call(path, others))
        assert (code, reason) == (Code.PERMISSION_DENIED, "PERMISSION_DENIED"), path
        assert need.value in text
    assert serving.reached == []


async def test_every_method_answers_a_key_with_its_own_permission(serving: Serving) -> None:
    for path, need in serving.policy.items():
        if need is not Permission.PUBLIC:
            code = await first_word(serving.call(path, serving.bearer(need)))
            assert code not in {
                Code.UNAUTHENTICATED,
                Code.PERMISSION_DENIED,
                Code.INTERNAL,
                Code.UNKNOWN,
                Code.DEADLINE_EXCEEDED,
            }, path
    own = set(TABLES[serving.service][0])
    public = {path for path in own if serving.policy[path] is Permission.PUBLIC}
    assert set(serving.reached) == own - public


def variants(path: str) -> list[str]:
    """Paths that a careless router takes for `path`."""
    _, service, method = path.split("/")
    return [
        f"//{service}/{method}",
        f"/{service}//{method}",
        f"/{service}/{method}/",
        f"/{service}/{method}?a=1",
        f"/{service}/{method}#a",
        f"/{service}/./{method}",
        f"/x/../{service}/{method}",
        f"/{service.replace('.', '%2e')}/{method}",
        f"/{service}%2f{method}",
        f"/{service}/%{ord(method[0]):02x}{method[1:]}",
        f"/{service}/{method.swapcase()}",
        f"/{service.upper()}/{method}",
        f"/{service}/{method} ",
        f"/{service}.{method}",
    ]


async def test_other_spellings_of_a_path_never_reach_a_servicer(serving: Serving) -> None:
    owner = serving.bearer(*GRANTED)
    for path in TABLES[serving.service][0]:
        for variant in variants(path):
            anonymous = await refusal(serving.call(variant))
            assert anonymous[0] is Code.UNAUTHENTICATED, variant
            code, _, reason = await refusal(serving.call(variant, owner))
            assert (code, reason) == (Code.UNIMPLEMENTED, "UNKNOWN_METHOD"), variant
    assert serving.reached == []
