"""Tensors on the wire of the Open Inference Protocol: raw bytes to numpy arrays and back.

Raw encoding: little-endian, row-major, without padding. BOOL takes one byte. A BYTES tensor is, for
each element, a little-endian uint32 length followed by that many bytes. An empty tensor is an empty
byte string.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["NUMPY_TYPES", "TensorError", "datatype_of", "from_raw", "to_raw"]


class TensorError(ValueError):
    """A tensor that the protocol cannot carry, or bytes that are no such tensor."""


def _numpy_types() -> dict[str, np.dtype[Any]]:
    types = {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype("u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype("i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        "BYTES": np.dtype(object),
    }
    # numpy has no bfloat16 of its own; a client that never uses BF16 need not install ml_dtypes.
    if importlib.util.find_spec("ml_dtypes") is not None:
        import ml_dtypes

        types["BF16"] = np.dtype(ml_dtypes.bfloat16)
    return types


NUMPY_TYPES: Final[Mapping[str, np.dtype[Any]]] = _numpy_types()
"""Numpy type of each datatype of the protocol. BF16 is missing where ml_dtypes is not installed."""

_DATATYPES: Final = {dtype: name for name, dtype in NUMPY_TYPES.items()}
_LENGTH: Final = struct.Struct("<I")


def datatype_of(array: NDArray[Any]) -> str:
    """Returns the protocol's name of the array's type: `FP32`, `INT64`, `BYTES` and so on.

    Arrays of `str`, `bytes` and Python objects are BYTES.

    Raises:
        TensorError: The protocol has no such type (complex numbers, dates, records).
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    name = _DATATYPES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise TensorError(f"numpy type {array.dtype} has no counterpart in the protocol")
    return name


def to_raw(array: NDArray[Any], datatype: str) -> bytes:
    """Encodes an array of any shape as the raw bytes of `datatype`; only the byte order may change.

    Elements of a BYTES array are `bytes`, or `str` that are sent as UTF-8.

    Raises:
        TensorError: The array has another type than `datatype`, or an element of a BYTES array is
            neither `bytes` nor `str`.
    """
    dtype = _dtype(datatype)
    if datatype == "BYTES":
        return _strings_to_raw(array)
    if array.dtype.newbyteorder("<") != dtype:
        raise TensorError(f"expected an array of {dtype} for {datatype}, got {array.dtype}")
    # `astype` turns big-endian arrays around; for the usual ones it returns the array itself.
    return array.astype(dtype, copy=False).tobytes()


def from_raw(raw: bytes | memoryview, datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """Decodes raw bytes into an array of `shape`.

    Returns:
        A read-only view of `raw` that copies nothing; for BYTES a new object array of `bytes`.

    Raises:
        TensorError: The bytes do not hold exactly the elements of `shape`, or a size is negative.
    """
    dtype = _dtype(datatype)
    if any(size < 0 for size in shape):
        raise TensorError(f"shape {list(shape)} has a negative size")
    count = math.prod(shape)
    if datatype == "BYTES":
        return _strings_from_raw(raw, count).reshape(shape)
    expected = count * dtype.itemsize
    if len(raw) != expected:
        raise TensorError(
            f"byte size mismatch for shape {list(shape)} of {datatype}. "
            f"Expected {expected}, got {len(raw)}"
        )
    array = np.frombuffer(raw, dtype=dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _dtype(datatype: str) -> np.dtype[Any]:
    dtype = NUMPY_TYPES.get(datatype)
    if dtype is not None:
        return dtype
    if datatype == "BF16":
        raise TensorError("BF16 needs the package ml-dtypes, which is not installed")
    raise TensorError(
        f"unknown datatype {datatype[:40]!r}, expected one of {', '.join(NUMPY_TYPES)}"
    )


def _strings_to_raw(array: NDArray[Any]) -> bytes:
    # One growing buffer: millions of small parts take a second to free, with everybody waiting.
    raw = bytearray()
    for element in array.flat:
        if isinstance(element, str):
            data = element.encode()
        elif isinstance(element, bytes):
            data = element
        else:
            raise TensorError(
                f"elements of a BYTES tensor must be bytes or str, got {type(element).__name__}"
            )
        raw += _LENGTH.pack(len(data))
        raw += data
    return bytes(raw)


def _strings_from_raw(raw: bytes | memoryview, count: int) -> NDArray[Any]:
    # An element takes at least its length, so a shape that promises more is refused before anything
    # is allocated for it.
    if count * _LENGTH.size > len(raw):
        raise TensorError(
            f"expected {count} strings, but {len(raw)} bytes hold at most "
            f"{len(raw) // _LENGTH.size}"
        )
    strings = np.empty(count, dtype=object)
    offset = 0
    for index in range(count):
        start = offset + _LENGTH.size
        if start > len(raw):
            raise TensorError(f"expected {count} strings, got {index} and an incomplete length")
        (length,) = _LENGTH.unpack_from(raw, offset)
        offset = start + length
        if offset > len(raw):
            raise TensorError(
                f"string {index} claims {length} bytes, but only {len(raw) - start} are left"
            )
        strings[index] = bytes(raw[start:offset])
    if offset != len(raw):
        raise TensorError(
            f"expected {count} strings, got {len(raw) - offset} more bytes after them"
        )
    return strings
