"""The protocol's two sets of names for the types of elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from modelrail.oip.v2 import model_config_pb2 as pb

DATA_TYPES: Final[Mapping[str, pb.DataType]] = {
    "BOOL": pb.TYPE_BOOL,
    "UINT8": pb.TYPE_UINT8,
    "UINT16": pb.TYPE_UINT16,
    "UINT32": pb.TYPE_UINT32,
    "UINT64": pb.TYPE_UINT64,
    "INT8": pb.TYPE_INT8,
    "INT16": pb.TYPE_INT16,
    "INT32": pb.TYPE_INT32,
    "INT64": pb.TYPE_INT64,
    "FP16": pb.TYPE_FP16,
    "FP32": pb.TYPE_FP32,
    "FP64": pb.TYPE_FP64,
    "BF16": pb.TYPE_BF16,
    "BYTES": pb.TYPE_STRING,
}
"""Number in a configuration of each datatype of tensors."""

DATATYPE_NAMES: Final[Mapping[int, str]] = {number: name for name, number in DATA_TYPES.items()}
"""The other way round."""
