"""Compares what a configuration says about lengths with the graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from modelrail.tensor import NUMPY_TYPES
from modelrail_inference.model.batching import Padding
from modelrail_inference.model.definition import LoadError
from modelrail_inference.model.signature import DYNAMIC, Signature, TensorSpec

_SHOWN = 40
"""Most characters of a value that an error repeats."""


def split_mask(
    signature: Signature, padding: Padding | None
) -> tuple[Signature, TensorSpec | None]:
    """Returns what callers see, and the input that the server fills.

    Args:
        signature: Inputs and outputs of the graph, with the batch dimension.
        padding: How requests of different lengths get into one batch; None where they do not.

    Raises:
        LoadError: The configuration names an input, output or axis that the graph does not have,
            one that cannot be of any length, or a value that the input's datatype cannot hold.
    """
    if padding is None:
        return signature, None
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    for name, padded in padding.inputs.items():
        spec = _check_axis(f"inputs.{name}", inputs.get(name), padded.axis, list(inputs))
        _check_value(f"inputs.{name}.value", spec.datatype, padded.value)
    for name, axis in padding.outputs.items():
        _check_axis(f"outputs.{name}", outputs.get(name), axis, list(outputs))
    if padding.mask is None:
        return signature, None
    mask = inputs.get(padding.mask)
    if mask is None or padding.mask in padding.inputs:
        raise _wrong(
            "mask", f"expected an input that is not padded, of {list(inputs)}, got '{padding.mask}'"
        )
    if mask.shape != (DYNAMIC, DYNAMIC) or mask.datatype == "BYTES":
        raise _wrong(
            "mask",
            f"expected numbers of shape [batch, length], got {mask.datatype} {list(mask.shape)}",
        )
    visible = tuple(spec for spec in signature.inputs if spec is not mask)
    return Signature(visible, signature.outputs), mask


def _check_axis(field: str, spec: TensorSpec | None, axis: int, names: list[str]) -> TensorSpec:
    if spec is None:
        raise _wrong(field, f"expected one of {names}")
    if axis >= len(spec.shape) or spec.shape[axis] != DYNAMIC:
        raise _wrong(
            field, f"expected an axis of any length, got {axis} of shape {list(spec.shape)}"
        )
    return spec


def _check_value(field: str, datatype: str, value: float) -> None:
    """Refuses what numpy would refuse in each batch, wrap around, or round to something else.

    Floats may round, but not to infinity; NaN and infinities are values of theirs.
    """
    dtype = NUMPY_TYPES[datatype]
    if datatype == "BYTES":
        fits = value == 0
        expected = "no value for BYTES, which is padded with empty strings"
    elif datatype == "BOOL":
        fits = value in (0, 1)
        expected = "0 or 1 for BOOL"
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = value % 1 == 0 and limits.min <= value <= limits.max  # NaN and infinities are not
        expected = f"a whole number from {limits.min} to {limits.max} for {datatype}"
    else:
        fits = _stays_finite(value, dtype)
        expected = f"a number within the range of {datatype}"
    if not fits:
        got = str(value)
        raise _wrong(
            field,
            f"expected {expected}, got {got if len(got) <= _SHOWN else got[:_SHOWN] + '…'}",
        )


def _stays_finite(value: float, dtype: np.dtype[Any]) -> bool:
    try:
        number = float(value)
    except OverflowError:
        return False
    if not math.isfinite(number):
        return True
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.array(number).astype(dtype)))


def _wrong(field: str, description: str) -> LoadError:
    return LoadError(f"padding.{field}: {description}")
