"""The inference service's client: Open Inference Protocol v2 with Triton's extensions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from modelrail.client.channel import Connection
from modelrail.client.ended import errors_of
from modelrail.client.errors import DataLoss, Unavailable
from modelrail.client.service import DEFAULT_TIMEOUT_SECONDS, ServiceClient
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail.oip.v2.model_config_pb2 import ModelConfig
from modelrail.tensor import NUMPY_TYPES, TensorError, datatype_of, from_raw, to_raw

__all__ = ["AsyncInferenceClient", "InferFailure", "InferRequest", "InferResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What one inference needs."""

    model: str
    """Name of the model."""
    inputs: Mapping[str, NDArray[Any]]
    """Array of each input; its numpy type becomes the protocol's datatype as it is."""
    version: str = ""
    """Version number as text; empty lets the server choose."""
    outputs: Sequence[str] = ()
    """Outputs wanted; none means all."""
    request_id: str = ""
    """Comes back in the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResult:
    """What one inference answered."""

    outputs: dict[str, NDArray[Any]]
    """Array of each output: a read-only view of the received bytes."""
    model_name: str
    model_version: str
    """The version that answered."""
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InferFailure:
    """One request of a stream that failed, while the stream goes on."""

    message: str
    request_id: str


class AsyncInferenceClient(ServiceClient):
    """Runs models, and asks what is served.

    Every method raises `ModelrailError`, most specifically.

    Args:
        connection: Where the inference service is, or just its address.
        timeout_seconds: Deadline of every call that does not name its own.
        channel: A channel to use instead of an own one; it is not closed.
    """

    def __init__(
        self,
        connection: Connection | str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        super().__init__(connection, timeout_seconds=timeout_seconds, channel=channel)
        self._stub = GRPCInferenceServiceStub(self._channel)

    async def server_live(self) -> bool:
        """Returns whether the server runs."""
        return (await self._call(self._stub.ServerLive, pb.ServerLiveRequest())).live

    async def server_ready(self) -> bool:
        """Returns whether every model that the server shall serve is ready."""
        return (await self._call(self._stub.ServerReady, pb.ServerReadyRequest())).ready

    async def model_ready(self, name: str, version: str = "") -> bool:
        """Returns whether a model, or one version of it, answers requests."""
        request = pb.ModelReadyRequest(name=name, version=version)
        return (await self._call(self._stub.ModelReady, request)).ready

    async def server_metadata(self) -> pb.ServerMetadataResponse:
        """Returns the server's name, version and protocol extensions."""
        return await self._call(self._stub.ServerMetadata, pb.ServerMetadataRequest())

    async def model_metadata(self, name: str, version: str = "") -> pb.ModelMetadataResponse:
        """Returns the names, types and shapes of a model's inputs and outputs."""
        request = pb.ModelMetadataRequest(name=name, version=version)
        return await self._call(self._stub.ModelMetadata, request)

    async def model_config(self, name: str, version: str = "") -> ModelConfig:
        """Returns how a model is served."""
        request = pb.ModelConfigRequest(name=name, version=version)
        return (await self._call(self._stub.ModelConfig, request)).config

    async def statistics(self, name: str = "", version: str = "") -> pb.ModelStatisticsResponse:
        """Returns counts and durations of one model, or of all."""
        request = pb.ModelStatisticsRequest(name=name, version=version)
        return await self._call(self._stub.ModelStatistics, request)

    async def repository_index(
        self, *, ready: bool = False
    ) -> Sequence[pb.RepositoryIndexResponse.ModelIndex]:
        """Returns the models that the server knows; with `ready` only those that answer."""
        request = pb.RepositoryIndexRequest(ready=ready)
        return list((await self._call(self._stub.RepositoryIndex, request)).models)

    async def load_model(self, name: str) -> None:
        """Loads a model of the repository, or loads it again."""
        request = pb.RepositoryModelLoadRequest(model_name=name)
        await self._call(self._stub.RepositoryModelLoad, request)

    async def unload_model(self, name: str) -> None:
        """Stops serving a model."""
        request = pb.RepositoryModelUnloadRequest(model_name=name)
        await self._call(self._stub.RepositoryModelUnload, request)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
        timeout_seconds: float | None = None,
    ) -> InferResult:
        """Runs a model once.

        Args:
            model: Name of the model.
            inputs: Array of each input; its numpy type becomes the protocol's datatype as it is.
            version: Version number as text; empty lets the server choose.
            outputs: Outputs wanted; none means all.
            request_id: Comes back in the result.
            timeout_seconds: Deadline of this call; the client's own when None.

        Raises:
            TensorError: An input's numpy type has no counterpart in the protocol.
            InvalidArgument: The inputs are not what the model takes; the message says what was
                expected.
            NotFound: There is no such model or version.
            Unavailable: The model is being loaded, or the server is busy.
            DataLoss: The server's answer is malformed.
        """
        request = InferRequest(
            model=model, inputs=inputs, version=version, outputs=outputs, request_id=request_id
        )
        response = await self._call(
            self._stub.ModelInfer, _encoded(request), timeout_seconds=timeout_seconds
        )
        return _decoded(response)

    async def stream_infer(
        self, requests: AsyncIterable[InferRequest], *, timeout_seconds: float | None = None
    ) -> AsyncGenerator[InferResult | InferFailure, None]:
        """Runs many requests over one stream and yields the answers in the order of the requests.

        A request that fails yields an `InferFailure`, and the stream goes on. Wrap the iterator in
        `contextlib.aclosing` to end the stream when the loop is left.

        Args:
            requests: What to run, with an answer to each; the stream ends after the answer to the
                last.
            timeout_seconds: Deadline of the whole stream; None for none, as it lasts as long as
                `requests`.

        Raises:
            TensorError: An input's numpy type has no counterpart in the protocol.
            Unavailable: The server, or a proxy, ended the stream before all requests were sent and
                answered.
            ModelrailError: The stream itself failed.
        """
        written = answered = 0
        all_written = False
        call = self._stub.ModelStreamInfer(timeout=timeout_seconds, metadata=self._metadata)

        async def write() -> None:
            nonlocal written, all_written
            try:
                async for request in requests:
                    await call.write(_encoded(request))
                    written += 1
                all_written = True
                await call.done_writing()
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                pass  # The server has ended the stream; the reading side knows why.
            except BaseException:
                call.cancel()
                raise

        writer = asyncio.create_task(write())
        try:
            async with errors_of(call):
                async for response in call:
                    answered += 1
                    yield _stream_answer(response)
            if all_written or writer.done():
                await writer
            # An end without an error says nothing of what the server never read.
            if not all_written:
                raise Unavailable(
                    "the server ended the stream before all requests were sent",
                    reason="STREAM_ENDED",
                )
            if answered < written:
                raise Unavailable(
                    f"the server ended the stream with {answered} of {written} requests answered",
                    reason="STREAM_ENDED",
                )
        except asyncio.CancelledError:
            # Our own cancel() above ends the reading side like this: what stopped the writer is the
            # reason.
            if writer.done() and not writer.cancelled() and (error := writer.exception()):
                raise error from None
            raise
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.wait([writer])


def _encoded(request: InferRequest) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(
        model_name=request.model, model_version=request.version, id=request.request_id
    )
    for name, array in request.inputs.items():
        datatype = datatype_of(array)
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(bytes(to_raw(array, datatype)))
    for name in request.outputs:
        message.outputs.add(name=name)
    return message


def _decoded(response: pb.ModelInferResponse) -> InferResult:
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise DataLoss(
            f"expected raw contents for {len(response.outputs)} outputs, got {len(raw)}",
            reason="MALFORMED_RESPONSE",
        )
    try:
        outputs = {
            output.name: from_raw(raw[index], output.datatype, output.shape)
            if raw
            else _typed(output)
            for index, output in enumerate(response.outputs)
        }
    except TensorError as error:
        raise DataLoss(f"malformed output: {error}", reason="MALFORMED_RESPONSE") from error
    return InferResult(
        outputs=outputs,
        model_name=response.model_name,
        model_version=response.model_version,
        request_id=response.id,
    )


def _typed(output: pb.ModelInferResponse.InferOutputTensor) -> NDArray[Any]:
    """Reads the typed contents that servers other than ours and Triton answer with."""
    populated = output.contents.ListFields()
    values = list(populated[0][1]) if populated else []
    dtype = NUMPY_TYPES.get(output.datatype)
    if dtype is None:
        raise TensorError(f"unknown datatype {output.datatype[:40]!r}")
    try:
        return np.array(values, dtype=dtype).reshape(output.shape)
    except (ValueError, OverflowError) as error:
        raise TensorError(f"output {output.name}: {error}") from error


def _stream_answer(response: pb.ModelStreamInferResponse) -> InferResult | InferFailure:
    if response.error_message:
        return InferFailure(message=response.error_message, request_id=response.infer_response.id)
    return _decoded(response.infer_response)
