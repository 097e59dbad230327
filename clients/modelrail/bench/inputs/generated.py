"""Random inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail.bench.inputs.layout import Layout
from modelrail.bench.plan import PlanError, shown_range
from modelrail.bench.server.target import InputSpec
from modelrail.tensor import NUMPY_TYPES, to_raw

__all__ = ["random_tensors"]

_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype="S1")
_TEXT_LENGTH = 16
_TEXT_BYTES = 4 + _TEXT_LENGTH  # its length stands before it
_MOST_BYTES = 1 << 31
"""More does not fit a message of protobuf."""


def random_tensors(
    layout: Layout, ranges: Mapping[str, tuple[float, float]], generator: np.random.Generator
) -> list[tuple[InputSpec, bytes]]:
    """Makes the inputs of one request.

    Floating-point numbers lie in [0, 1), integers are 0 or 1 (which every table of embeddings
    holds), truth values are even, texts have 16 letters. `ranges` changes that for numbers.

    Raises:
        PlanError: A size is still open, a datatype is unknown, a range does not fit one, or the
            inputs fit no message.
    """
    specs = [
        InputSpec(spec.name, spec.datatype, layout.full_shape(_closed(spec)))
        for spec in layout.inputs
    ]
    size = sum(_count_bytes(spec) for spec in specs)
    if size >= _MOST_BYTES:
        raise PlanError(
            f"batch_size, shapes: expected inputs of less than {_MOST_BYTES} bytes, got {size}"
        )
    return [(spec, _random_bytes(spec, ranges.get(spec.name), generator)) for spec in specs]


def _count_bytes(spec: InputSpec) -> int:
    if spec.datatype == "BYTES":
        return math.prod(spec.shape) * _TEXT_BYTES
    return math.prod(spec.shape) * (2 if spec.datatype == "BF16" else _dtype(spec).itemsize)


def _dtype(spec: InputSpec) -> np.dtype[Any]:
    dtype = NUMPY_TYPES.get(spec.datatype)
    if dtype is None:
        raise PlanError(f"input {spec.name}: cannot make values of the datatype {spec.datatype}")
    return dtype


def _closed(spec: InputSpec) -> tuple[int, ...]:
    if -1 in spec.shape:
        sizes = ",".join("N" if size < 0 else str(size) for size in spec.shape)
        raise PlanError(
            f"shapes: expected {spec.name}:{sizes} with a number for each N,"
            f" because the model takes any size there; got nothing"
        )
    return spec.shape


def _random_bytes(
    spec: InputSpec, limits: tuple[float, float] | None, generator: np.random.Generator
) -> bytes:
    if spec.datatype in {"BYTES", "BOOL"} and limits is not None:
        raise PlanError(f"ranges: {spec.name}: expected an input of numbers, got {spec.datatype}")
    if spec.datatype == "BYTES":
        return to_raw(_texts(math.prod(spec.shape), generator), "BYTES")
    if spec.datatype == "BF16":
        # The upper half of an FP32 is a BF16: this needs no package that knows the type.
        values = _uniform(spec, np.dtype("<f4"), limits or (0, 1), generator)
        return (values.view("<u4") >> 16).astype("<u2").tobytes()
    dtype = _dtype(spec)
    if dtype.kind == "b":
        return to_raw(generator.integers(0, 2, spec.shape).astype(np.bool_), spec.datatype)
    if dtype.kind == "f":
        return to_raw(_uniform(spec, dtype, limits or (0, 1), generator), spec.datatype)
    return to_raw(_integers(spec, dtype, limits or (0, 1), generator), spec.datatype)


def _integers(
    spec: InputSpec,
    dtype: np.dtype[Any],
    limits: tuple[float, float],
    generator: np.random.Generator,
) -> NDArray[Any]:
    (low, high), bounds = limits, np.iinfo(dtype)
    if not (bounds.min <= low and high <= bounds.max and low == int(low) and high == int(high)):
        raise PlanError(
            f"ranges: {spec.name}: expected whole numbers from {bounds.min} to {bounds.max} for"
            f" {spec.datatype}, got {shown_range(limits)}"
        )
    return np.asarray(
        generator.integers(int(low), int(high), spec.shape, dtype=dtype.type, endpoint=True)
    )


def _uniform(
    spec: InputSpec,
    dtype: np.dtype[Any],
    limits: tuple[float, float],
    generator: np.random.Generator,
) -> NDArray[Any]:
    (low, high), greatest = limits, float(np.finfo(dtype).max)
    if not (-greatest <= low and high <= greatest):
        raise PlanError(
            f"ranges: {spec.name}: expected numbers from {-greatest:g} to {greatest:g} for"
            f" {spec.datatype}, got {shown_range(limits)}"
        )
    return np.asarray(generator.uniform(low, high, spec.shape)).astype(dtype)


def _texts(count: int, generator: np.random.Generator) -> NDArray[Any]:
    letters = _LETTERS[generator.integers(0, len(_LETTERS), (count, _TEXT_LENGTH))]
    texts = np.empty(count, dtype=object)
    texts[:] = [row.tobytes() for row in letters]
    return texts
