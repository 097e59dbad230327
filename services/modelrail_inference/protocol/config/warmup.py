"""Reads `model_warmup`, the sample requests in a `config.pbtxt`, and writes it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail.tensor import NUMPY_TYPES
from modelrail_inference.model.warmup import (
    WARMUP_FOLDER,
    Fill,
    SampleInput,
    WarmupSample,
)
from modelrail_inference.protocol.config.field_error import field_error
from modelrail_inference.protocol.datatypes import DATA_TYPES, DATATYPE_NAMES

_MAX_SAMPLES = 64
_MAX_COUNT = 1000
_MAX_BYTES = 1 << 30


def read_warmup(config: pb.ModelConfig, folder: Path) -> tuple[WarmupSample, ...]:
    """Reads the sample requests.

    Args:
        config: The configuration.
        folder: The model's folder, with the folder `warmup` in it.

    Raises:
        LoadError: One is not what is expected; the message names the field.
    """
    if len(config.model_warmup) > _MAX_SAMPLES:
        raise field_error(
            "model_warmup", f"expected at most {_MAX_SAMPLES}, got {len(config.model_warmup)}"
        )
    return tuple(_samples(config, folder))


def _samples(config: pb.ModelConfig, folder: Path) -> Iterator[WarmupSample]:
    for index, sample in enumerate(config.model_warmup):
        where = f"model_warmup[{index}]"
        if not sample.name:
            raise field_error(f"{where}.name", "expected a name, got none")
        largest = max(1, config.max_batch_size)
        if sample.batch_size > largest:
            raise field_error(
                f"{where}.batch_size", f"expected at most {largest}, got {sample.batch_size}"
            )
        if sample.count > _MAX_COUNT:
            raise field_error(
                f"{where}.count", f"expected at most {_MAX_COUNT}, got {sample.count}"
            )
        if not sample.inputs:
            raise field_error(f"{where}.inputs", "expected at least one input, got none")
        batch_size = max(1, sample.batch_size) if config.max_batch_size else 0
        yield WarmupSample(
            name=sample.name[:80],
            batch_size=batch_size,
            count=max(1, sample.count),
            inputs={
                name: _input(f"{where}.inputs['{name[:80]}']", item, max(1, batch_size), folder)
                for name, item in sample.inputs.items()
            },
        )


def _input(field: str, item: pb.ModelWarmup.Input, batch_size: int, folder: Path) -> SampleInput:
    datatype = DATATYPE_NAMES.get(item.data_type)
    if datatype is None or datatype not in NUMPY_TYPES:
        raise field_error(f"{field}.data_type", "expected a data type that this server has")
    if any(size < 0 for size in item.dims):
        raise field_error(f"{field}.dims", f"expected sizes of at least 0, got {list(item.dims)}")
    size_bytes = batch_size * math.prod(item.dims) * NUMPY_TYPES[datatype].itemsize
    if size_bytes > _MAX_BYTES:
        raise field_error(f"{field}.dims", f"expected at most {_MAX_BYTES} bytes, got {size_bytes}")
    return SampleInput(datatype, tuple(item.dims), _source(field, item, folder))


def _source(field: str, item: pb.ModelWarmup.Input, folder: Path) -> Fill | Path:
    match item.WhichOneof("input_data_type"):
        case "zero_data" if item.zero_data:
            return Fill.ZERO
        case "random_data" if item.random_data:
            return Fill.RANDOM
        case "input_data_file":
            name = item.input_data_file
            if not name or "/" in name or "\0" in name or name in (".", ".."):
                raise field_error(
                    f"{field}.input_data_file", f"expected a plain file name, got {name[:80]!r}"
                )
            return folder / WARMUP_FOLDER / name
        case _:
            raise field_error(field, "expected zero_data, random_data or input_data_file")


def write_warmup(samples: Iterable[WarmupSample], config: pb.ModelConfig) -> None:
    """Writes the sample requests into `config`, for the RPC ModelConfig."""
    for sample in samples:
        written = config.model_warmup.add(
            name=sample.name, batch_size=sample.batch_size, count=sample.count
        )
        for name, item in sample.inputs.items():
            entry = written.inputs[name]
            entry.data_type = DATA_TYPES[item.datatype]
            entry.dims.extend(item.dims)
            if isinstance(item.source, Path):
                entry.input_data_file = item.source.name
            elif item.source is Fill.ZERO:
                entry.zero_data = True
            else:
                entry.random_data = True
