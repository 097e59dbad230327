"""Examines one ONNX file: `python -m modelrail_registry.admission FILE`, in a process with limits.

A model file is code from a stranger: parsing it can take any amount of memory and time, or crash.
The registry process therefore never imports onnx; it starts this program and reads one JSON object
from its standard output: `{"signature": {...}, "opset": 18}` or `{"rejected": "why"}`, with
`"passing": true` when another limit could change the answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
MAX_INLINED_NODES = 1_000_000
_MAX_FUNCTION_DEPTH = 64
_MAX_TENSORS = 1024
# As `rules` has them for a signature that a publisher gives.
_MAX_NAME = 1024
_MAX_SYMBOL = 256
_MAX_RANK = 64
_MAX_ANSWER_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_BASE_MEMORY_BYTES = 2 << 30


class Rejected(Exception):
    """The file is refused; the text says why, for its publisher."""


def examine(data: bytes) -> dict[str, Any]:
    """Returns the signature and the opset of a model.

    Raises:
        Rejected: The bytes are no valid ONNX model, or one with content that is not served here.
    """
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise Rejected("it is not an ONNX file: the bytes do not parse") from None
    if not model.HasField("graph") or not model.ir_version:
        raise Rejected("it is not an ONNX file: it holds no graph")
    _check_external_data(model)
    _check_operators(model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise Rejected(f"onnx.checker refuses it: {first[:500]}") from None
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    return {"signature": _signature(model), "opset": opset}


def _messages(root: Message) -> Iterator[Message]:
    """Gives a message and every message below it, whatever field it hides in."""
    waiting = [root]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "ListFields") else value)


def _check_external_data(model: onnx.ModelProto) -> None:
    import onnx

    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            raise Rejected(
                f"tensor {message.name[:100]!r} is kept outside of the file; "
                "save the model as one file (external_data=False)"
            )


def _nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    """Gives nodes with those of their subgraphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting.extend(graph.node)


def _check_operators(model: onnx.ModelProto) -> None:
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def inlined(nodes: Any, callers: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in _nodes(nodes):
            key = (node.domain, node.op_type)
            if key in functions:
                if key in callers:
                    raise Rejected(f"function {node.op_type[:100]!r} calls itself")
                if len(callers) >= _MAX_FUNCTION_DEPTH:
                    raise Rejected(f"functions are nested more than {_MAX_FUNCTION_DEPTH} deep")
                if key not in sizes:
                    sizes[key] = inlined(functions[key].node, (*callers, key))
                total += sizes[key]
            elif node.domain in DOMAINS:
                total += 1
            else:
                raise Rejected(
                    f"operator {node.op_type[:100]!r} is of domain {node.domain[:100]!r}; "
                    f"expected one of {sorted(DOMAINS)}"
                )
            if total > MAX_INLINED_NODES:
                raise Rejected(f"it unfolds to more than {MAX_INLINED_NODES} nodes")
        return total

    for key, function in functions.items():
        if key not in sizes:
            sizes[key] = inlined(function.node, (key,))
    inlined(model.graph.node, ())


def _signature(model: onnx.ModelProto) -> dict[str, Any]:
    import onnx

    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    outputs = list(graph.output)
    if len(inputs) + len(outputs) > _MAX_TENSORS:
        raise Rejected(f"it has more than {_MAX_TENSORS} inputs and outputs")
    if not outputs:
        raise Rejected("it has no outputs")
    if any(not value.type.tensor_type.HasField("shape") for value in outputs):
        with contextlib.suppress(onnx.shape_inference.InferenceError, ValueError):
            inferred = onnx.shape_inference.infer_shapes(model).graph.output
            outputs = list(inferred) if len(inferred) == len(outputs) else outputs
    return {
        "inputs": [_tensor(value, "input") for value in inputs],
        "outputs": [_tensor(value, "output") for value in outputs],
    }


def _tensor(value: onnx.ValueInfoProto, role: str) -> dict[str, Any]:
    import onnx

    types = onnx.TensorProto
    datatypes = {
        types.FLOAT: "FP32",
        types.FLOAT16: "FP16",
        types.DOUBLE: "FP64",
        types.BFLOAT16: "BF16",
        types.BOOL: "BOOL",
        types.STRING: "BYTES",
        **{getattr(types, f"INT{bits}"): f"INT{bits}" for bits in (8, 16, 32, 64)},
        **{getattr(types, f"UINT{bits}"): f"UINT{bits}" for bits in (8, 16, 32, 64)},
    }
    what = f"{role} {value.name[:100]!r}"
    # A file of proto2 may hold any bytes as text, and protobuf gives such text as bytes.
    if not isinstance(value.name, str):
        raise Rejected(f"{what} has a name that is not UTF-8")
    if len(value.name) > _MAX_NAME:
        raise Rejected(
            f"{what} has a name of {len(value.name)} characters; expected at most {_MAX_NAME}"
        )
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "nothing"
        raise Rejected(f"{what} is of kind {kind}; expected a tensor")
    tensor = value.type.tensor_type
    datatype = datatypes.get(tensor.elem_type)
    if datatype is None:
        raise Rejected(
            f"{what} has element type {tensor.elem_type}, which no protocol datatype is for"
        )
    if not tensor.HasField("shape"):
        raise Rejected(f"{what} has no shape; export the model with the ranks of its tensors")
    if len(tensor.shape.dim) > _MAX_RANK:
        raise Rejected(
            f"{what} has {len(tensor.shape.dim)} dimensions; expected at most {_MAX_RANK}"
        )
    shape: list[int | str | None] = []
    for dimension in tensor.shape.dim:
        if dimension.WhichOneof("value") == "dim_value":
            if dimension.dim_value < 0:
                raise Rejected(f"{what} has a dimension of size {dimension.dim_value}")
            shape.append(dimension.dim_value)
        else:
            if not isinstance(dimension.dim_param, str):
                raise Rejected(f"{what} has a dimension with a name that is not UTF-8")
            if len(dimension.dim_param) > _MAX_SYMBOL:
                raise Rejected(
                    f"{what} has a dimension with a name of {len(dimension.dim_param)} characters; "
                    f"expected at most {_MAX_SYMBOL}"
                )
            shape.append(dimension.dim_param or None)
    return {"name": value.name, "datatype": datatype, "shape": shape}


def _limit(size: int, cpu_seconds: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The file, its parsed form, and the checker's copy of it.
    memory = _BASE_MEMORY_BYTES + 4 * size
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def main() -> int:
    """Examines the file named by the first argument, with the CPU seconds of the second."""
    path = Path(sys.argv[1])
    _limit(path.stat().st_size, int(sys.argv[2]) if len(sys.argv) > 2 else 60)
    # Only the answer goes to standard output, whatever a library prints.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        document = examine(path.read_bytes())
    except Rejected as rejection:
        document = {"rejected": str(rejection)}
    except (MemoryError, RecursionError):
        document = {
            "rejected": "its examination needs more memory than a file of its size may take",
            "passing": True,
        }
    text = json.dumps(document)
    if len(text) > _MAX_ANSWER_BYTES:
        text = json.dumps(
            {"rejected": f"its signature takes more than {_MAX_ANSWER_BYTES} bytes of JSON"}
        )
    with answer:
        answer.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
