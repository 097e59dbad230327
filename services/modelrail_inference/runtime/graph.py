"""What a model file says about the time of its runs, without the package `onnx`.

Reads just the operators' names, field by field as protobuf encodes them; weights are skipped over.
Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_Buffer = mmap.mmap | bytes

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE = 1
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_LENGTH_DELIMITED = 2
_MAX_OPERATORS = 10_000

# Operators whose work is bounded by the sizes of their inputs. Not among them: control flow, what
# makes outputs as large as a value says (Range, Expand, Tile, ConstantOfShape, …), and strings.
# fmt: off
_BOUNDED: Final = frozenset(
    (
        "Abs", "Acos", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool",
        "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant",
        "Conv", "Cos", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf",
        "Exp", "FastGelu", "Flatten", "Floor", "FusedConv", "FusedMatMul", "GRU", "Gather",
        "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
        "Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid", "HardSwish",
        "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LSTM", "LayerNormalization",
        "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "MatMulInteger",
        "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu",
        "Pow", "QGemm", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "RMSNormalization",
        "RNN", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
        "Relu", "Reshape", "Round", "Selu", "Shape", "Sigmoid", "Sign",
        "SimplifiedLayerNormalization", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus",
        "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu",
        "Transpose", "Trilu", "Unsqueeze", "Where", "Xor", "LinearClassifier",
        "LinearRegressor", "Normalizer", "Scaler", "TreeEnsemble", "TreeEnsembleClassifier",
        "TreeEnsembleRegressor",
    )
)
# fmt: on
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


class _MalformedError(Exception):
    """The bytes are no message."""


def is_bounded(path: Path) -> bool:
    """Whether the sizes of its inputs bound the time of a run, whatever values they hold.

    False also for files that cannot be read, and for operators that are not known here.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _is_bounded(data)
    except (OSError, ValueError, _MalformedError):
        return False


def _is_bounded(model: _Buffer) -> bool:
    operators = 0
    for number, start, stop in _fields(model, 0, len(model)):
        if number == _MODEL_FUNCTIONS:
            return False
        if number != _MODEL_GRAPH:
            continue
        for inner, node_start, node_stop in _fields(model, start, stop):
            if inner != _GRAPH_NODE:
                continue
            operators += 1
            if operators > _MAX_OPERATORS or not _is_known(model, node_start, node_stop):
                return False
    return operators > 0


def _is_known(model: _Buffer, start: int, stop: int) -> bool:
    operator = domain = ""
    for number, begin, end in _fields(model, start, stop):
        if number == _NODE_OPERATOR:
            operator = model[begin:end].decode(errors="replace")
        elif number == _NODE_DOMAIN:
            domain = model[begin:end].decode(errors="replace")
    return operator in _BOUNDED and domain in _DOMAINS


def _fields(data: _Buffer, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yields number, begin and end of the length-delimited fields of a message."""
    position = start
    while position < stop:
        tag, position = _varint(data, position, stop)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, position = _varint(data, position, stop)
            if position + length > stop:
                raise _MalformedError
            yield tag >> 3, position, position + length
            position += length
        elif kind == 0:
            _, position = _varint(data, position, stop)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise _MalformedError


def _varint(data: _Buffer, position: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while position < stop and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
    raise _MalformedError
