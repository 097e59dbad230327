"""Random inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail.bench.inputs.layout import Layout
from modelrail.bench.plan import PlanError
from modelrail.bench.server.target import InputSpec
from modelrail.tensor import NUMPY_TYPES, to_raw

__all__ = ["random_tensors"]

_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype="S1")
_TEXT_LENGTH = 16


def random_tensors(
    layout: Layout, ranges: Mapping[str, tuple[float, float]], generator: np.random.Generator
) -> list[tuple[InputSpec, bytes]]:
    """Makes the inputs of one request.

    Floating-point numbers lie in [0, 1), integers are 0 or 1 (which every table of embeddings
    holds), truth values are even, texts have 16 letters. `ranges` changes that for numbers.

    Raises:
        PlanError: A size is still open, a datatype is unknown, or a range does not fit one.
    """
    return [
        (
            InputSpec(spec.name, spec.datatype, shape),
            _random_bytes(spec, shape, ranges.get(spec.name), generator),
        )
        for spec in layout.inputs
        for shape in [layout.full_shape(_closed(spec))]
    ]


def _closed(spec: InputSpec) -> tuple[int, ...]:
    if -1 in spec.shape:
        sizes = ",".join("N" if size < 0 else str(size) for size in spec.shape)
        raise PlanError(
            f"shapes: expected {spec.name}:{sizes} with a number for each N,"
            f" because the model takes any size there; got nothing"
        )
    return spec.shape


def _random_bytes(
    spec: InputSpec,
    shape: tuple[int, ...],
    limits: tuple[float, float] | None,
    generator: np.random.Generator,
) -> bytes:
    if spec.datatype in {"BYTES", "BOOL"} and limits is not None:
        raise PlanError(f"ranges: {spec.name}: expected an input of numbers, got {spec.datatype}")
    if spec.datatype == "BYTES":
        return to_raw(_texts(math.prod(shape), generator), "BYTES")
    if spec.datatype == "BF16":
        # The upper half of an FP32 is a BF16: this needs no package that knows the type.
        values = _uniform(shape, limits, generator).astype("<f4")
        return (values.view("<u4") >> 16).astype("<u2").tobytes()
    dtype = NUMPY_TYPES.get(spec.datatype)
    if dtype is None:
        raise PlanError(f"input {spec.name}: cannot make values of the datatype {spec.datatype}")
    if dtype.kind == "b":
        return to_raw(generator.integers(0, 2, shape).astype(np.bool_), spec.datatype)
    if dtype.kind == "f":
        return to_raw(_uniform(shape, limits, generator).astype(dtype), spec.datatype)
    low, high = limits or (0, 1)
    bounds = np.iinfo(dtype)
    if not (bounds.min <= low and high <= bounds.max and low == int(low) and high == int(high)):
        raise PlanError(
            f"ranges: {spec.name}: expected whole numbers from {bounds.min} to {bounds.max} for"
            f" {spec.datatype}, got {low:g},{high:g}"
        )
    integers = generator.integers(int(low), int(high), shape, dtype=dtype.type, endpoint=True)
    return to_raw(np.asarray(integers), spec.datatype)


def _uniform(
    shape: tuple[int, ...],
    limits: tuple[float, float] | None,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    low, high = limits or (0.0, 1.0)
    return np.asarray(generator.uniform(low, high, shape))


def _texts(count: int, generator: np.random.Generator) -> NDArray[Any]:
    letters = _LETTERS[generator.integers(0, len(_LETTERS), (count, _TEXT_LENGTH))]
    texts = np.empty(count, dtype=object)
    texts[:] = [row.tobytes() for row in letters]
    return texts
