"""Reads `config.pbtxt`, the configuration of a model in Triton's layout.

What is not implemented is refused with the field's name: a configuration is honoured as written, or
not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.model.definition import (
    CONFIG_FILE,
    MODEL_FILE,
    LoadError,
    ModelSettings,
    VersionPolicy,
)
from modelrail_inference.model.signature import DYNAMIC, TensorSpec
from modelrail_inference.protocol.config.batching import (
    BATCH_BUCKETS,
    PADDING,
    read_batching,
    read_buckets,
    read_padding,
)
from modelrail_inference.protocol.config.checks import (
    REJECT_NONFINITE,
    read_rejects_nonfinite,
)
from modelrail_inference.protocol.config.field_error import field_error
from modelrail_inference.protocol.config.findings import read_findings
from modelrail_inference.protocol.config.gpu import GPU_FIELDS, read_gpu, read_provider
from modelrail_inference.protocol.config.session import read_session
from modelrail_inference.protocol.config.warmup import read_warmup
from modelrail_inference.protocol.convert import BACKEND, PLATFORM
from modelrail_inference.protocol.datatypes import DATATYPE_NAMES

_MAX_BYTES = 1 << 20
_MAX_INSTANCES = 1024

_HONOURED = frozenset(
    {
        "name",
        "platform",
        "backend",
        "max_batch_size",
        "version_policy.latest.num_versions",
        "version_policy.all",
        "version_policy.specific.versions",
        "input.name",
        "input.data_type",
        "input.dims",
        "output.name",
        "output.data_type",
        "output.dims",
        "instance_group.name",
        "instance_group.kind",
        "instance_group.count",
        *GPU_FIELDS,
        "default_model_filename",
        "dynamic_batching",
        "dynamic_batching.preferred_batch_size",
        "dynamic_batching.max_queue_delay_microseconds",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_levels",
        "dynamic_batching.default_priority_level",
        *(
            f"dynamic_batching.{policy}.{field}"
            for policy in ("default_queue_policy", "priority_queue_policy.value")
            for field in (
                "timeout_action",
                "default_timeout_microseconds",
                "allow_timeout_override",
                "max_queue_size",
            )
        ),
        "dynamic_batching.default_queue_policy",
        "dynamic_batching.priority_queue_policy.key",
        "model_warmup.name",
        "model_warmup.batch_size",
        "model_warmup.count",
        "model_warmup.inputs.key",
        "model_warmup.inputs.value.data_type",
        "model_warmup.inputs.value.dims",
        "model_warmup.inputs.value.zero_data",
        "model_warmup.inputs.value.random_data",
        "model_warmup.inputs.value.input_data_file",
        "optimization.graph.level",
        "parameters.key",
        "parameters.value.string_value",
    }
)
# Messages that say nothing when they are there and empty; an empty `dynamic_batching` says
# something.
_HARMLESS_EMPTY = frozenset(
    {
        "model_transaction_policy",
        "response_cache",
        "optimization",
        "optimization.cuda",
        "optimization.execution_accelerators",
        "optimization.graph",
        "version_policy.latest",
    }
)


def read_settings(path: Path, model: str) -> ModelSettings:
    """Reads a configuration file.

    Args:
        path: The file.
        model: Name of the model's folder, which the configuration may repeat.

    Raises:
        LoadError: The file is no such configuration, contradicts itself, or asks for what is not
            offered; the message names the field.
    """
    config = pb.ModelConfig()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise field_error("the file", f"expected at most {_MAX_BYTES} bytes")
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise LoadError(f"{CONFIG_FILE}: {_first_line(error)}") from error
    for name in _fields(config):
        if name not in _HONOURED:
            raise field_error(name, "not supported by this server")
    _check_backend(config, model)
    parameters = config.parameters
    others = (PADDING, BATCH_BUCKETS, REJECT_NONFINITE, *read_findings(config))
    return ModelSettings(
        max_batch_size=_at_least_zero("max_batch_size", config.max_batch_size),
        inputs=_tensors("input", config.input, config.max_batch_size),
        outputs=_tensors("output", config.output, config.max_batch_size),
        provider=read_provider(config),
        instances=_instances(config),
        version_policy=_version_policy(config.version_policy),
        file_name=_file_name(config.default_model_filename),
        batching=read_batching(config),
        padding=read_padding(parameters[PADDING].string_value, config.max_batch_size)
        if PADDING in parameters
        else None,
        batch_buckets=read_buckets(parameters[BATCH_BUCKETS].string_value, config.max_batch_size)
        if BATCH_BUCKETS in parameters
        else (),
        rejects_nonfinite=read_rejects_nonfinite(config),
        warmup=read_warmup(config, path.parent),
        session=read_gpu(config, read_session(config, others)),
    )


def _fields(message: Message, prefix: str = "") -> Iterator[str]:
    """Yields the path of every field that is set, such as `version_policy.latest.num_versions`."""
    for descriptor, value in message.ListFields():
        path = f"{prefix}{descriptor.name}"
        if descriptor.message_type is None:
            yield path
            continue
        if descriptor.message_type.GetOptions().map_entry:
            for key in value:
                yield f"{path}.key"
                entry = value[key]
                if isinstance(entry, Message):
                    yield from _fields(entry, f"{path}.value.")
            continue
        entries = [value] if isinstance(value, Message) else list(value)
        for entry in entries:
            inner = list(_fields(entry, f"{path}."))
            if not inner and path not in _HARMLESS_EMPTY:
                yield path
            yield from inner


def _check_backend(config: pb.ModelConfig, model: str) -> None:
    if config.name not in ("", model):
        raise field_error(
            "name", f"expected '{model}', the name of the folder, got '{config.name}'"
        )
    if config.platform not in ("", PLATFORM):
        raise field_error("platform", f"expected '{PLATFORM}', got '{config.platform}'")
    if config.backend not in ("", BACKEND):
        raise field_error("backend", f"expected '{BACKEND}', got '{config.backend}'")


def _tensors(field: str, tensors: Any, max_batch_size: int) -> tuple[TensorSpec, ...]:
    specs = []
    for index, tensor in enumerate(tensors):
        datatype = DATATYPE_NAMES.get(tensor.data_type)
        if not tensor.name:
            raise field_error(f"{field}[{index}].name", "expected a name, got none")
        if datatype is None:
            raise field_error(
                f"{field}[{index}].data_type", "expected a data type, got TYPE_INVALID"
            )
        if any(size < DYNAMIC for size in tensor.dims):
            raise field_error(
                f"{field}[{index}].dims",
                f"expected sizes of at least 0, or -1 for any, got {tensor.dims}",
            )
        leading = (DYNAMIC,) if max_batch_size else ()
        specs.append(TensorSpec(tensor.name, datatype, (*leading, *tensor.dims)))
    return tuple(specs)


def _instances(config: pb.ModelConfig) -> int:
    """Returns the runs at a time; 0, as without a group, for as many as the server's threads."""
    count = config.instance_group[0].count if config.instance_group else 0
    if not 0 <= count <= _MAX_INSTANCES:
        raise field_error("instance_group[0].count", f"expected 0 to {_MAX_INSTANCES}, got {count}")
    return count


def _version_policy(policy: pb.ModelVersionPolicy) -> VersionPolicy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return VersionPolicy(latest=0)
        case "specific":
            numbers = tuple(policy.specific.versions)
            if not numbers or min(numbers) < 0:
                raise field_error(
                    "version_policy.specific.versions", "expected numbers of at least 0"
                )
            return VersionPolicy(latest=0, specific=numbers)
        case _:
            return VersionPolicy(latest=policy.latest.num_versions or 1)


def _file_name(name: str) -> str:
    if "/" in name or "\0" in name or name in (".", ".."):
        raise field_error(
            "default_model_filename", f"expected a plain file name, got {name[:80]!r}"
        )
    return name or MODEL_FILE


def _at_least_zero(field: str, value: int) -> int:
    if value < 0:
        raise field_error(field, f"expected a number of at least 0, got {value}")
    return value


def _first_line(error: Exception) -> str:
    text = (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
    return text.splitlines()[0][:300]
