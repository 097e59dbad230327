"""Protobuf messages of the Open Inference Protocol to domain values and back; nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2 import model_config_pb2 as config_pb
from modelrail_inference.failures import with_request_id
from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.model.signature import TensorSpec
from modelrail_inference.protocol.config.batching import (
    BATCH_BUCKETS,
    PADDING,
    write_batching,
    write_buckets,
    write_padding,
)
from modelrail_inference.protocol.config.checks import write_rejects_nonfinite
from modelrail_inference.protocol.config.findings import (
    BATCHING_OFF,
    EXECUTION_PROVIDER,
    METADATA_PREFIX,
)
from modelrail_inference.protocol.config.gpu import write_provider
from modelrail_inference.protocol.config.session import write_session
from modelrail_inference.protocol.config.warmup import write_warmup
from modelrail_inference.protocol.datatypes import DATA_TYPES
from modelrail_inference.repository.lifecycle import Version
from modelrail_inference.repository.repository import IndexEntry
from modelrail_inference.request.message import (
    InferenceRequest,
    InputTensor,
    Parameter,
    TypedContents,
)
from modelrail_inference.statistics import Duration, VersionStatistics
from modelrail_server.errors import InvalidArgument

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"

MAX_PARTS = 4096
"""Inputs, outputs or parameters: more than any model can want."""
_MAX_RANK = 64


def request_from_pb(request: pb.ModelInferRequest, *, message_bytes: int = 0) -> InferenceRequest:
    """Reads a request. Raw entries belong to the inputs in order; surplus entries are ignored.

    Typed contents are not copied: they stay in `request`, which must not change meanwhile.

    Args:
        request: The message.
        message_bytes: What it takes as bytes, which stay as long as the request.

    Raises:
        InvalidArgument: Raw and typed contents are mixed, one input has two typed fields, or
            there are more inputs, outputs or parameters than any model can want.
    """
    try:
        _check_counts(request)
        inputs = tuple(_inputs(request))
    except InvalidArgument as error:
        raise with_request_id(error, request.id) from None
    return InferenceRequest(
        model=request.model_name,
        version=request.model_version,
        id=request.id,
        inputs=inputs,
        outputs=tuple(output.name for output in request.outputs),
        parameters=_parameters(request.parameters),
        input_parameters=_of_tensors(request.inputs),
        output_parameters=_of_tensors(request.outputs),
        message_bytes=message_bytes,
    )


def _check_counts(request: pb.ModelInferRequest) -> None:
    """Keeps a request of millions of empty parts from holding up everybody else."""
    counts = {
        "inputs": len(request.inputs),
        "outputs": len(request.outputs),
        "parameters": len(request.parameters),
        "inputs.parameters": sum(len(tensor.parameters) for tensor in request.inputs),
        "outputs.parameters": sum(len(tensor.parameters) for tensor in request.outputs),
    }
    for field, count in counts.items():
        if count > MAX_PARTS:
            raise InvalidArgument.field(field, f"expected at most {MAX_PARTS}, got {count}")


def _inputs(request: pb.ModelInferRequest) -> Iterator[InputTensor]:
    raw = request.raw_input_contents
    for index, tensor in enumerate(request.inputs):
        data: bytes | TypedContents | None = _contents(f"inputs[{index}].contents", tensor)
        if raw and data is not None:
            raise InvalidArgument.field(
                f"inputs[{index}].contents",
                f"contents field must not be specified when using raw_input_contents for "
                f"'{tensor.name[:60]}' for model '{request.model_name[:80]}'",
            )
        if index < len(raw):
            data = raw[index]
        # Longer shapes fit no model, whatever follows.
        yield InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape[:_MAX_RANK]), data)


def _contents(field: str, tensor: pb.ModelInferRequest.InferInputTensor) -> TypedContents | None:
    if not tensor.HasField("contents"):
        return None
    filled = tensor.contents.ListFields()
    if len(filled) > 1:
        names = " and ".join(descriptor.name for descriptor, _ in filled)
        raise InvalidArgument.field(field, f"expected one typed field, got {names}")
    if not filled:
        return None
    return TypedContents(filled[0][0].name, filled[0][1], tensor.contents.ByteSize())


def _of_tensors(
    tensors: Iterable[
        pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor
    ],
) -> dict[str, dict[str, Parameter]]:
    return {t.name: _parameters(t.parameters) for t in tensors if t.parameters}


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    values: dict[str, Parameter] = {}
    for key, parameter in parameters.items():
        choice = next(iter(parameter.ListFields()), None)
        if choice is None:  # a value of zero is set and still not listed
            which = parameter.WhichOneof("parameter_choice")
            values[key] = getattr(parameter, which) if which else None
        else:
            values[key] = choice[1]
    return values


def stream_error_to_pb(request: pb.ModelInferRequest, message: str) -> pb.ModelStreamInferResponse:
    """Writes the error of one request, which leaves the stream open."""
    response = pb.ModelStreamInferResponse(error_message=message)
    response.infer_response.id = request.id
    response.infer_response.model_name = request.model_name
    response.infer_response.model_version = request.model_version
    return response


def metadata_to_pb(model: LoadedModel, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """Writes names, datatypes and shapes, with the batch dimension, and the provider that runs."""
    return pb.ModelMetadataResponse(
        name=model.model,
        versions=[str(number) for number in versions],
        platform=PLATFORM,
        inputs=[_tensor_metadata(spec) for spec in model.signature.inputs],
        outputs=[_tensor_metadata(spec) for spec in model.signature.outputs],
        properties={"execution_provider": model.provider.value},
    )


def _tensor_metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype, shape=spec.shape
    )


def config_to_pb(model: LoadedModel, *, instances: int) -> pb.ModelConfigResponse:
    """Writes the configuration that is in force, with everything that was found out filled in.

    It can be used as a `config.pbtxt`. Besides what such a file says, `parameters` holds
    `execution_provider`, the provider that really runs the model, why requests are not put
    together (`batching_off`), and what the exporter said about the model: keys `modelrail.*`, with
    the class labels in `modelrail.output_spec`.

    Args:
        model: The model.
        instances: Runs of the model that there are at a time in each process.
    """
    config = config_pb.ModelConfig(
        name=model.model,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=model.max_batch_size,
        default_model_filename=model.settings.file_name,
    )
    policy = model.settings.version_policy
    if policy.specific:
        config.version_policy.specific.versions.extend(policy.specific)
    elif policy.latest:
        config.version_policy.latest.num_versions = policy.latest
    else:
        config.version_policy.all.SetInParent()
    leading = 1 if model.max_batch_size else 0
    for spec in model.signature.inputs:
        config.input.add(
            name=spec.name, data_type=DATA_TYPES[spec.datatype], dims=spec.shape[leading:]
        )
    for spec in model.signature.outputs:
        config.output.add(
            name=spec.name, data_type=DATA_TYPES[spec.datatype], dims=spec.shape[leading:]
        )
    batching = model.batching()
    if batching is not None:
        config.dynamic_batching.CopyFrom(write_batching(batching))
    if model.settings.padding is not None:
        config.parameters[PADDING].string_value = write_padding(model.settings.padding)
    if model.settings.batch_buckets:
        config.parameters[BATCH_BUCKETS].string_value = write_buckets(model.settings.batch_buckets)
    write_rejects_nonfinite(model.settings.rejects_nonfinite, config)
    config.instance_group.add(name=model.model, count=instances)
    write_session(model.settings.session, config)
    write_warmup(model.settings.warmup, config)
    write_provider(model.provider, config)
    config.parameters[EXECUTION_PROVIDER].string_value = model.provider.value
    if model.batching_reason:
        config.parameters[BATCHING_OFF].string_value = model.batching_reason
    for key, value in model.metadata.items():
        if key.startswith(METADATA_PREFIX):
            config.parameters[key].string_value = value
    return pb.ModelConfigResponse(config=config)


def statistics_to_pb(versions: Iterable[VersionStatistics]) -> pb.ModelStatisticsResponse:
    """Writes the counters of versions."""
    return pb.ModelStatisticsResponse(model_stats=[_model_statistics(one) for one in versions])


def _model_statistics(counters: VersionStatistics) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=counters.model,
        version=str(counters.number),
        last_inference=counters.last_inference_ms,
        inference_count=counters.inference_count,
        execution_count=counters.execution_count,
        inference_stats=_inference_statistics(counters),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for size, batch in sorted(counters.batches.items())
        ],
    )


def _inference_statistics(counters: VersionStatistics) -> pb.InferStatistics:
    return pb.InferStatistics(
        success=_duration(counters.success),
        fail=_duration(counters.fail),
        queue=_duration(counters.queue),
        compute_input=_duration(counters.compute_input),
        compute_infer=_duration(counters.compute_infer),
        compute_output=_duration(counters.compute_output),
        cache_hit=pb.StatisticDuration(),
        cache_miss=pb.StatisticDuration(),
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)


def index_to_pb(
    entries: Sequence[IndexEntry], problems: Mapping[str, str], *, ready: bool
) -> pb.RepositoryIndexResponse:
    """Writes the index; of names that were never loaded there is no more than the problem."""
    response = pb.RepositoryIndexResponse()
    for entry in entries:
        if not ready or entry.state.value == "READY":
            response.models.add(
                name=entry.model,
                version=str(entry.number),
                state=entry.state.value,
                reason=entry.reason,
            )
    if not ready:
        seen = {entry.model for entry in entries}
        for name in sorted(problems.keys() - seen):
            response.models.add(name=name, reason=problems[name])
    return response


def check_repository_parameters(
    parameters: Mapping[str, pb.ModelRepositoryParameter], allowed: frozenset[str]
) -> None:
    """Refuses what a caller wants to change about a load: only the operator's files are served.

    Raises:
        InvalidArgument: A parameter is not offered.
    """
    for key in parameters:
        if key in allowed:
            continue
        what = (
            "overriding the configuration or files of a model is not offered"
            if key == "config" or key.startswith("file:")
            else "unknown parameter"
        )
        raise InvalidArgument.field(f"parameters[{key[:60]}]", what)


def versions(ready: Iterable[Version]) -> list[int]:
    """Returns the numbers of versions."""
    return [version.number for version in ready]
