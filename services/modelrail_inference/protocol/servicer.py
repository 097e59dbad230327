"""The 20 RPCs of the Open Inference Protocol with Triton's extensions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2 import grpc_service_pb2_grpc as pb_grpc
from modelrail_inference.dataplane import DataPlane
from modelrail_inference.fleet.fleet import Fleet
from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.protocol import convert
from modelrail_inference.protocol.policy import SERVICE
from modelrail_inference.protocol.stream import Streams
from modelrail_inference.protocol.wire import ReplyEncoder, RequestDecoder
from modelrail_inference.repository.repository import Repository, not_ready
from modelrail_inference.request.call import Call
from modelrail_inference.request.unread import UnreadReplies
from modelrail_inference.scheduling.queue.refusals import exiting
from modelrail_server.context import Context, identity
from modelrail_server.errors import Unimplemented

EXTENSIONS: Final = (
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Triton's names of the protocol extensions that exist here."""

_UNLOAD_PARAMETERS: Final = frozenset({"unload_dependents"})
_SMALL_REPLY_BYTES: Final = 4096
"""Replies up to this size are bounded by the number of calls: to count them would cost more."""


class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Converts, calls one domain method, converts back.

    Shared memory, tracing and log settings are not offered. Their methods answer UNIMPLEMENTED,
    except the two Unregister methods: perf_analyzer calls them before it starts, on every machine,
    and taking all of no regions away is done by doing nothing.

    Args:
        repository: The loaded models.
        dataplane: Answers requests.
        fleet: Answers what is asked of all processes that serve together.
        unread: Counts the replies that callers have not taken.
        stopping: Set when streams have to end.
        max_stream_in_flight: Requests in flight on one stream.
    """

    def __init__(
        self,
        repository: Repository,
        dataplane: DataPlane,
        fleet: Fleet,
        unread: UnreadReplies,
        *,
        stopping: asyncio.Event,
        max_stream_in_flight: int,
    ) -> None:
        self._repository = repository
        self._dataplane = dataplane
        self._fleet = fleet
        self._unread = unread
        self._stopping = stopping
        self._decoder = RequestDecoder()
        self._encoder = ReplyEncoder()
        self._streams = Streams(
            dataplane,
            self._decoder,
            self._encoder,
            unread,
            max_in_flight=max_stream_in_flight,
            stopping=stopping,
        )

    async def ServerLive(  # noqa: N802
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        """Answers that the process runs."""
        self._check_not_stopping()
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        """Answers whether every model that this server was started for is loaded."""
        self._check_not_stopping()
        return pb.ServerReadyResponse(ready=await self._fleet.ready())

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """Answers whether a model takes requests; an unknown one does not."""
        ready = await self._fleet.model_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Answers name, version and the extensions that exist."""
        return pb.ServerMetadataResponse(
            name="modelrail", version=version("modelrail"), extensions=EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Answers inputs and outputs; versions are the ready ones, or the one asked for."""
        model = self._loaded(request.name, request.version)
        ready = convert.versions(self._repository.ready_versions(request.name))
        return convert.metadata_to_pb(model, [model.number] if request.version else ready)

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        """Answers the configuration, completed."""
        model = self._loaded(request.name, request.version)
        return convert.config_to_pb(model, instances=self._dataplane.instances_of(model))

    async def ModelInfer(  # type: ignore[override]  # noqa: N802
        self, request: bytes, context: Context
    ) -> bytes:
        """Runs a model. Takes and gives serialised messages: this is the hot path."""
        call = Call.within(context.time_remaining(), identity=identity().name, peer=context.peer)
        reply = self._encoder.encode(
            await self._dataplane.infer(self._decoder.decode(request), call)
        )
        if len(reply) > _SMALL_REPLY_BYTES:
            self._hold_until_sent(len(reply), context.peer())
        return reply

    async def ModelStreamInfer(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Runs models for many requests on one stream, answered in their order; serialised too."""
        async for response in self._streams.answer(request_iterator, context):
            yield response

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Answers the counters of one version, of a model's versions, or of all."""
        statistics = await self._fleet.statistics(request.name, request.version)
        return convert.statistics_to_pb(statistics)

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """Answers every version with its state and the reason of it."""
        _check_repository_name(request.repository_name)
        index = await self._fleet.index()
        return convert.index_to_pb(index.entries, index.problems, ready=request.ready)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Loads a model that the source knows, or loads it anew. Answers when it is ready."""
        _check_repository_name(request.repository_name)
        convert.check_repository_parameters(request.parameters, frozenset())
        await self._fleet.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Takes a model away until it is loaded again. Requests in flight are still answered."""
        _check_repository_name(request.repository_name)
        convert.check_repository_parameters(request.parameters, _UNLOAD_PARAMETERS)
        await self._fleet.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryUnregister(  # noqa: N802
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Does nothing, as no region can be registered."""
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryUnregister(  # noqa: N802
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Does nothing, as no region can be registered."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def SystemSharedMemoryStatus(  # noqa: N802
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        """Is not offered."""
        _refuse("SystemSharedMemoryStatus")

    async def SystemSharedMemoryRegister(  # noqa: N802
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Is not offered."""
        _refuse("SystemSharedMemoryRegister")

    async def CudaSharedMemoryStatus(  # noqa: N802
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        """Is not offered."""
        _refuse("CudaSharedMemoryStatus")

    async def CudaSharedMemoryRegister(  # noqa: N802
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Is not offered."""
        _refuse("CudaSharedMemoryRegister")

    async def TraceSetting(  # noqa: N802
        self, request: pb.TraceSettingRequest, context: Context
    ) -> pb.TraceSettingResponse:
        """Is not offered."""
        _refuse("TraceSetting")

    async def LogSettings(  # noqa: N802
        self, request: pb.LogSettingsRequest, context: Context
    ) -> pb.LogSettingsResponse:
        """Is not offered."""
        _refuse("LogSettings")

    def _hold_until_sent(self, reply_bytes: int, connection: str) -> None:
        """Counts a reply until the task of its call ends, when gRPC has sent it, or given it up."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a servicer ran outside of a call")
        replies = self._unread.of_call(connection)
        replies.hold(reply_bytes)
        task.add_done_callback(lambda _: replies.close())

    def _loaded(self, name: str, number: str) -> LoadedModel:
        found = self._repository.find(name, number)
        if found.serving is None:
            raise not_ready(found, name)
        return found.serving.model

    def _check_not_stopping(self) -> None:
        if self._stopping.is_set():
            raise exiting()


def register(servicer: InferenceServicer, server: grpc.aio.Server) -> None:
    """Adds the servicer under the protocol's own name.

    Not by the generated function: the two methods of the hot path read and write their messages by
    themselves.
    """
    raw: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(servicer.ModelInfer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(servicer.ModelStreamInfer),
    }
    handlers = {
        method.name: raw.get(method.name) or _handler(servicer, method)
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _handler(
    servicer: InferenceServicer, method: MethodDescriptor
) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        getattr(servicer, method.name),
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _refuse(method: str) -> NoReturn:
    raise Unimplemented(f"{method} is not offered by this server", reason="METHOD_NOT_OFFERED")


def _check_repository_name(name: str) -> None:
    if name:
        raise Unimplemented(
            "'repository_name' is not supported: this server has one repository",
            reason="REPOSITORY_NAME_UNSUPPORTED",
        )
