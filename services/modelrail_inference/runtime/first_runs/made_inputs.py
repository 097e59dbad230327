"""Inputs that nobody sent: of sample requests, and the smallest zeros that a model may take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng  # numpy imports it late, and each trial would do it again
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES, TensorError, from_raw, to_raw
from modelrail_inference.model.batching import Padding
from modelrail_inference.model.definition import LoadError, ModelSettings
from modelrail_inference.model.signature import DYNAMIC, Signature, TensorSpec
from modelrail_inference.model.warmup import WARMUP_FOLDER, Fill, SampleInput, WarmupSample
from modelrail_inference.request.assembly import BatchBuffers, BatchLayout, assemble
from modelrail_inference.request.feed import Feed
from modelrail_inference.request.message import InputTensor

_MAX_STRING_BYTES = 64 << 20
_SEED = 11


def smallest_inputs(
    signature: Signature, rows: int, padding: Padding | None, *, edge: int = 0
) -> dict[str, NDArray[Any]]:
    """Returns zeros of the smallest sizes that a model may take, by input.

    Args:
        signature: Its inputs, and the mask that the server fills.
        rows: Size of a dynamic first dimension.
        padding: Which inputs have the length of an edge; None when none has.
        edge: That length; 0 for the shortest edge.
    """
    if padding is not None:
        edge = edge or padding.edges[0]
    return {spec.name: _smallest(spec, rows, padding, edge) for spec in signature.inputs}


def _smallest(spec: TensorSpec, rows: int, padding: Padding | None, edge: int) -> NDArray[Any]:
    shape = [1 if size == DYNAMIC else size for size in spec.shape]
    if spec.shape[:1] == (DYNAMIC,):
        shape[0] = rows
    if padding is not None:
        padded = padding.inputs.get(spec.name)
        if padded is not None or spec.name == padding.mask:
            shape[padded.axis if padded else 1] = edge
    return _filled(spec.datatype, tuple(shape), Fill.ZERO)


def sample_name(sample: WarmupSample) -> str:
    """Returns how a sample request is called in messages."""
    return f"the warm-up sample '{sample.name}'"


def sample_inputs(
    sample: WarmupSample, signature: Signature, settings: ModelSettings
) -> dict[str, NDArray[Any]]:
    """Returns the inputs of a sample request as the session sees those of a request like it.

    Args:
        sample: The request.
        signature: The model's inputs, and the mask that the server fills.
        settings: What the configuration says.

    Raises:
        LoadError: The sample does not fit the model, or cannot be read.
    """
    name, padding = sample_name(sample), settings.padding
    specs = {spec.name: spec for spec in signature.inputs}
    mask = specs.pop(padding.mask) if padding and padding.mask else None
    if sorted(sample.inputs) != sorted(specs):
        raise LoadError(f"{name}: expected the inputs {list(specs)}, got {sorted(sample.inputs)}")
    inputs = {
        given: _array(f"{name}: input '{given}'", item, sample.batch_size, specs[given])
        for given, item in sample.inputs.items()
    }
    length, edge = _edge(name, inputs, padding) if padding else (0, 0)
    feed = Feed(
        tuple((_tensor(spec, inputs[given]), spec) for given, spec in specs.items()),
        outputs=(),
        batch_size=sample.batch_size,
        length=length,
        edge=edge,
    )
    layout = BatchLayout(sample.batch_size > 0, padding, settings.batch_buckets, mask)
    return inputs if layout.is_whole(feed) else assemble([feed], layout, BatchBuffers())


def _edge(name: str, inputs: Mapping[str, NDArray[Any]], padding: Padding) -> tuple[int, int]:
    """Returns the length of the padded inputs, and that to which they are padded."""
    lengths = {inputs[given].shape[padded.axis] for given, padded in padding.inputs.items()}
    length = max(lengths)
    if len(lengths) > 1:
        raise LoadError(f"{name}: expected padded inputs of one length, got {sorted(lengths)}")
    edge = padding.edge_of(length)
    if edge is None:
        raise LoadError(f"{name}: expected a length of at most {padding.edges[-1]}, got {length}")
    return length, edge


def _tensor(spec: TensorSpec, array: NDArray[Any]) -> InputTensor:
    """Returns an input as if it had travelled; numbers are not copied."""
    is_text = spec.datatype == "BYTES"
    data = to_raw(array, "BYTES") if is_text else array.reshape(-1).view(np.uint8).data
    return InputTensor(spec.name, spec.datatype, array.shape, data)


def _array(where: str, item: SampleInput, batch_size: int, spec: TensorSpec) -> NDArray[Any]:
    if item.datatype != spec.datatype:
        raise LoadError(f"{where}: expected {spec.datatype}, got {item.datatype}")
    shape = (batch_size, *item.dims) if batch_size else item.dims
    if len(shape) != len(spec.shape) or any(
        expected not in (DYNAMIC, got) for expected, got in zip(spec.shape, shape, strict=True)
    ):
        raise LoadError(f"{where}: expected shape {list(spec.shape)}, got {list(shape)}")
    if isinstance(item.source, Fill):
        return _filled(item.datatype, shape, item.source)
    one = _read(where, item.source, item.datatype, item.dims)
    return np.repeat(one[np.newaxis], batch_size, axis=0) if batch_size else one


def _read(where: str, path: Path, datatype: str, dims: tuple[int, ...]) -> NDArray[Any]:
    shown = f"'{WARMUP_FOLDER}/{path.name}'"
    is_text = datatype == "BYTES"
    limit = math.prod(dims) * NUMPY_TYPES[datatype].itemsize if not is_text else _MAX_STRING_BYTES
    try:
        if not path.is_file():  # a pipe would be waited for
            raise LoadError(f"{where}: {shown} is not a file")
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        array = from_raw(raw, datatype, dims)
        if is_text:
            return _decoded(array)
    except OSError as error:
        raise LoadError(f"{where}: {shown} cannot be read") from error
    except (TensorError, UnicodeDecodeError) as error:
        raise LoadError(f"{where}: {shown}: {error}") from error
    return array


def _decoded(array: NDArray[Any]) -> NDArray[Any]:
    texts = np.empty(array.shape, object)
    texts.flat[:] = [element.decode() for element in array.flat]
    return texts


def _filled(datatype: str, shape: tuple[int, ...], fill: Fill) -> NDArray[Any]:
    if datatype == "BYTES":
        text: NDArray[Any] = np.full(shape, "" if fill is Fill.ZERO else "a", dtype=object)
        return text
    dtype = NUMPY_TYPES[datatype]
    if fill is Fill.ZERO:
        return np.zeros(shape, dtype)
    random = default_rng(_SEED)
    if dtype.kind in "biu":  # 0 and 1 are tokens, classes, flags and pixels of every model
        return random.integers(0, 2, shape).astype(dtype)
    return random.normal(size=shape).astype(dtype)
