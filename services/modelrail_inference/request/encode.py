"""From the outputs of a session to the bytes of a reply, within the limit of the transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail.tensor import to_raw
from modelrail_inference.model.signature import TensorSpec
from modelrail_inference.request.message import OutputTensor
from modelrail_server.errors import ResourceExhausted

_REPLY_BYTES = 256
"""What a reply takes beyond its outputs: names of the model, its version and parameters."""
_OUTPUT_BYTES = 64
"""What an output takes beyond its name, shape and content: datatype and the lengths of all."""
_SIZE_BYTES = 10
"""The longest size of a dimension."""
_SHOWN = 10
_VIEW_BYTES = 4096
"""Outputs of this size and more are not copied."""


def encode(
    specs: Sequence[TensorSpec], arrays: Sequence[NDArray[Any]], *, max_bytes: int
) -> tuple[OutputTensor, ...]:
    """Returns the outputs as they travel: views of `arrays`, but for strings and small ones.

    Strings take long, so it is called on a thread.

    Args:
        specs: The outputs, in the order of the reply.
        arrays: Their values; `str` objects for BYTES.
        max_bytes: Largest reply.

    Raises:
        ResourceExhausted: The reply would be larger; nothing is encoded that cannot be sent.
    """
    sizes = [_least_bytes(spec, array) for spec, array in zip(specs, arrays, strict=True)]
    _check_sizes(specs, sizes, max_bytes)
    outputs = []
    for index, (spec, array) in enumerate(zip(specs, arrays, strict=True)):
        raw: bytes | memoryview
        if spec.datatype == "BYTES":
            raw = to_raw(array, "BYTES")
            sizes[index] = _around(spec, array) + len(raw)
            _check_sizes(specs, sizes, max_bytes)
        else:
            raw = _bytes_of(array)
        outputs.append(OutputTensor(spec.name, spec.datatype, array.shape, raw))
    return tuple(outputs)


def _bytes_of(array: NDArray[Any]) -> bytes | memoryview:
    """Returns the bytes of an array of numbers: a view, unless it is small or not contiguous."""
    if array.nbytes < _VIEW_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _least_bytes(spec: TensorSpec, array: NDArray[Any]) -> int:
    if spec.datatype != "BYTES":
        return _around(spec, array) + array.nbytes
    # A length of four bytes each, and at least one byte a character. Not by `map`, which would let
    # no other thread run meanwhile.
    return _around(spec, array) + 4 * array.size + sum(len(text) for text in array.flat)


def _around(spec: TensorSpec, array: NDArray[Any]) -> int:
    return _OUTPUT_BYTES + len(spec.name) + _SIZE_BYTES * array.ndim


def _check_sizes(specs: Sequence[TensorSpec], sizes: Sequence[int], max_bytes: int) -> None:
    if sum(sizes) + _REPLY_BYTES <= max_bytes:
        return
    listed = ", ".join(
        f"'{spec.name}' {size}" for spec, size in list(zip(specs, sizes, strict=True))[:_SHOWN]
    )
    raise ResourceExhausted(
        f"the outputs do not fit into a reply of at most {max_bytes} bytes: {listed} bytes; ask "
        "for fewer outputs or send smaller batches",
        reason="REPLY_TOO_LARGE",
    )
