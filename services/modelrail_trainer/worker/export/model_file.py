"""An ONNX file: what it says of itself, and what it must not tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import Message

from modelrail_trainer.failure import ExportFailed
from modelrail_trainer.handover.artifact import BATCH, Signature, TensorSpec
from modelrail_trainer.spec import Task

TASK_PROPERTY = "modelrail.task"
_SCHEMA_VERSION = "1"


def check_batch_axis(model: onnx.ModelProto, batch: int | str = BATCH) -> None:
    """Refuses a graph whose first axis is fixed somewhere; the exporter may freeze it silently.

    Args:
        model: The graph.
        batch: Name of the axis, or its size where it must be fixed.

    Raises:
        ExportFailed: An input or output has another axis in front.
    """
    for kind, tensors in (("input", model.graph.input), ("output", model.graph.output)):
        for tensor in tensors:
            sizes = tensor.type.tensor_type.shape.dim
            first = (sizes[0].dim_param or sizes[0].dim_value) if sizes else "no axis"
            if first != batch:
                raise ExportFailed(
                    f"{kind} {tensor.name!r}: expected a first axis "
                    f"{'named' if isinstance(batch, str) else 'of size'} {batch!r}, got {first}"
                )


def strip(model: onnx.ModelProto) -> None:
    """Removes what the exporter tells about the source: stack traces, class names, paths."""
    for message in _messages(model):
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)


def leaks(model: onnx.ModelProto) -> list[str]:
    """Returns what `strip` should have removed, and every text that looks like a path.

    Names of inputs are the data's own, and may look like anything.
    """
    names = {value.name for value in model.graph.input}
    found = []
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if getattr(message, "doc_string", ""):
            found.append(f"doc_string of {kind}")
        if not isinstance(message, onnx.ModelProto) and getattr(message, "metadata_props", False):
            found.append(f"metadata of {kind}")
        for field, value in message.ListFields():
            is_ours = isinstance(message, onnx.StringStringEntryProto) and message.key.startswith(
                "modelrail."
            )
            if is_ours or not isinstance(value, str) or value in names:
                continue
            if "/" in value or ".py" in value:
                found.append(f"{field.name} of {kind}: {value[:80]!r}")
    return found


def external_tensors(model: onnx.ModelProto) -> list[str]:
    """Returns the names of tensors whose values lie in another file."""
    return [
        message.name
        for message in _messages(model)
        if isinstance(message, onnx.TensorProto)
        and message.data_location == onnx.TensorProto.EXTERNAL
    ]


def describe(model: onnx.ModelProto, signature: Signature, task: Task) -> None:
    """Writes the `modelrail.*` metadata: what a server needs to explain inputs and outputs."""
    for key, value in properties_of(model, signature, task).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def properties_of(model: onnx.ModelProto, signature: Signature, task: Task) -> dict[str, str]:
    """Returns what `describe` writes."""
    return {
        "modelrail.schema_version": _SCHEMA_VERSION,
        TASK_PROPERTY: task.value,
        "modelrail.opset": str(opset_of(model)),
        # Whether requests can be put together; a graph that is fixed to one row cannot.
        "modelrail.dynamic_batch": str(signature.has_batch).lower(),
        "modelrail.input_spec": _describe_tensors(signature.inputs),
        "modelrail.output_spec": _describe_tensors(signature.outputs),
    }


def opset_of(model: onnx.ModelProto) -> int:
    """Returns the version of the default operator set; 0 when the model does not import it."""
    return next((entry.version for entry in model.opset_import if not entry.domain), 0)


def _describe_tensors(tensors: tuple[TensorSpec, ...]) -> str:
    described = []
    for tensor in tensors:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "meaning": tensor.meaning,
        }
        if tensor.value_range is not None:
            entry["range"] = [tensor.value_range.minimum, tensor.value_range.maximum]
        if tensor.labels:
            entry["labels"] = tensor.labels
        described.append(entry)
    return json.dumps(described, sort_keys=True)


def _messages(message: Message) -> Iterator[Message]:
    """Walks a message and every message in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                yield from _messages(child)
