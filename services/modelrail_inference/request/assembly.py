"""From the inputs of several requests to one batch, and from its outputs back to each request.

Requests are copied once, into a buffer that is kept for the next batch. Outputs are views of what
the session returned. A request that runs alone does not come here, unless it has to be padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES
from modelrail_inference.model.batching import PaddedInput, Padding
from modelrail_inference.model.signature import TensorSpec
from modelrail_inference.request.feed import Feed


class RowsError(Exception):
    """An output has no row for each row that went in, so nobody can tell whose its rows are.

    That is how the model is, whatever the inputs.
    """


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """What a model's configuration says about the form of its batches.

    Attributes:
        batchable: Whether the model has a batch axis.
        padding: How different lengths get into one batch; None without that.
        buckets: The only batch sizes that the session sees, ascending; empty for any.
        mask: The input that the server fills; None without one.
    """

    batchable: bool
    padding: Padding | None = None
    buckets: tuple[int, ...] = ()
    mask: TensorSpec | None = None

    def rows_of(self, items: int) -> int:
        """Returns the batch size that the session sees for a number of items."""
        if not self.buckets:
            return items
        return next((bucket for bucket in self.buckets if bucket >= items), items)

    def is_whole(self, feed: Feed) -> bool:
        """Whether a request that runs alone is all that the session sees."""
        return self.padding is None and (
            not self.batchable or self.rows_of(feed.batch_size) == feed.batch_size
        )


class BatchBuffers:
    """Memory for the inputs of one batch at a time, used again and again.

    Each input has one block, as large as the largest batch that there was.
    """

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: dict[str, NDArray[np.uint8]] = {}

    def block(self, name: str, size_bytes: int) -> NDArray[np.uint8]:
        """Returns the first `size_bytes` of an input's block; what is in them is left over."""
        block = self._blocks.get(name)
        if block is None or block.size < size_bytes:
            block = self._blocks[name] = np.empty(size_bytes, np.uint8)
        return block[:size_bytes]


def assemble(
    feeds: Sequence[Feed], layout: BatchLayout, buffers: BatchBuffers
) -> dict[str, NDArray[Any]]:
    """Returns the inputs of a run.

    Args:
        feeds: Requests whose shapes fit together, decoded; at least one.
        layout: The form of the model's batches.
        buffers: Where the batch is put together; used until the run has ended.
    """
    if not layout.batchable:
        raise AssertionError("several requests for a model without batch axis")
    rows = layout.rows_of(sum(feed.batch_size for feed in feeds))
    inputs: dict[str, NDArray[Any]] = {}
    for index, (_, spec) in enumerate(feeds[0].inputs):
        padded = layout.padding.inputs.get(spec.name) if layout.padding else None
        if padded is not None:
            inputs[spec.name] = _padded(feeds, index, rows, buffers, padded)
        elif spec.datatype == "BYTES":
            inputs[spec.name] = _strings(feeds, index, rows)
        else:
            inputs[spec.name] = _numbers(feeds, index, rows, buffers)
    if layout.mask is not None:
        inputs[layout.mask.name] = _mask(feeds, layout.mask, rows)
    return inputs


def _numbers(feeds: Sequence[Feed], index: int, rows: int, buffers: BatchBuffers) -> NDArray[Any]:
    tensor, spec = feeds[0].inputs[index]
    dtype = NUMPY_TYPES[spec.datatype]
    row_shape = tensor.shape[1:]
    row_bytes = dtype.itemsize
    for size in row_shape:
        row_bytes *= size
    block = buffers.block(spec.name, rows * row_bytes)
    target = block.data
    offset = 0
    for feed in feeds:
        raw = feed.inputs[index][0].data
        if isinstance(raw, bytes | memoryview):  # checked: exactly its rows
            target[offset : offset + len(raw)] = raw
            offset += len(raw)
        else:
            array = feed.array(index)
            block[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
            offset += array.nbytes
    batch = block.view(dtype).reshape(rows, *row_shape)
    _fill(batch, offset // row_bytes if row_bytes else rows)
    return batch


def _strings(feeds: Sequence[Feed], index: int, rows: int) -> NDArray[Any]:
    batch: NDArray[Any] = np.concatenate([feed.array(index) for feed in feeds])
    missing = rows - batch.shape[0]
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch


def _padded(
    feeds: Sequence[Feed], index: int, rows: int, buffers: BatchBuffers, padded: PaddedInput
) -> NDArray[Any]:
    axis, edge = padded.axis, feeds[0].edge
    first = feeds[0].array(index)
    shape = (rows, *first.shape[1:axis], edge, *first.shape[axis + 1 :])
    if first.dtype == object:
        batch: NDArray[Any] = np.full(shape, "", dtype=object)
    else:
        size_bytes = int(np.prod(shape, dtype=np.int64)) * first.dtype.itemsize
        name = feeds[0].inputs[index][1].name
        batch = buffers.block(name, size_bytes).view(first.dtype).reshape(shape)
        # bfloat16 takes no large `int`, and a large integer would lose digits as a `float`.
        batch[...] = padded.value if first.dtype.kind in "iu" else float(padded.value)
    start = 0
    for feed in feeds:
        array = feed.array(index)
        end = start + feed.batch_size
        batch[(slice(start, end), *(slice(size) for size in array.shape[1:]))] = array
        start = end
    _fill(batch, start)
    return batch


def _mask(feeds: Sequence[Feed], spec: TensorSpec, rows: int) -> NDArray[Any]:
    mask = np.zeros((rows, feeds[0].edge), NUMPY_TYPES[spec.datatype])
    start = 0
    for feed in feeds:
        mask[start : start + feed.batch_size, : feed.length] = 1
        start += feed.batch_size
    _fill(mask, start)
    return mask


def _fill(batch: NDArray[Any], items: int) -> None:
    """Fills the rows that only a batch bucket asks for with a row that the model can compute."""
    if 0 < items < batch.shape[0]:
        batch[items:] = batch[items - 1]


def take_apart(
    outputs: Sequence[NDArray[Any]],
    specs: Sequence[TensorSpec],
    feeds: Sequence[Feed],
    layout: BatchLayout,
) -> list[dict[str, NDArray[Any]]]:
    """Returns the outputs of each request by name: views of the batch's.

    Args:
        outputs: What the session returned.
        specs: Their specifications, in the same order.
        feeds: The requests of the batch, in the order in which they were assembled.
        layout: The form of the model's batches.

    Raises:
        RowsError: An output does not have a row for each row that went in.
    """
    rows = layout.rows_of(sum(feed.batch_size for feed in feeds))
    for spec, array in zip(specs, outputs, strict=True):
        if array.ndim == 0 or array.shape[0] != rows:
            raise RowsError(
                f"output '{spec.name}' has shape {list(array.shape)} for a batch of {rows}; "
                "expected a first dimension of that size"
            )
    parts: list[dict[str, NDArray[Any]]] = []
    start = 0
    for feed in feeds:
        end = start + feed.batch_size
        parts.append(
            {
                spec.name: _cut(array[start:end], spec.name, feed, layout.padding)
                for spec, array in zip(specs, outputs, strict=True)
            }
        )
        start = end
    return parts


def _cut(array: NDArray[Any], name: str, feed: Feed, padding: Padding | None) -> NDArray[Any]:
    axis = padding.outputs.get(name) if padding else None
    if axis is None:
        return array
    return array[(*(slice(None),) * axis, slice(feed.length))]
