"""The order in which an epoch meets the training rows.

A random order over a large file would read a page of the disk for each row, and would keep all of
the file mapped. So the rows of a file come in windows: each reads blocks of neighbouring rows from
all over the file into memory, and gives their rows in a random order. A part that fits into one
window, or lies in memory, is one window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelrail_trainer.worker.part import Part

BLOCK_BYTES = 64 << 10
"""What is read together: a disk takes hardly longer for it than for a page."""
WINDOW_BLOCKS = 256
"""Rows of so many places of the file can meet in a batch. Blocks that are one row, and larger, are
fewer: they come in a wholly random order, however small the window is."""
_TOGETHER = 1024
"""Batches that an order is split into at a time."""
_MAPPED_BLOCKS = 4
"""The system may map megabytes of the file for a block that is read."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that batches are taken from.

    Attributes:
        inputs: [W, *row_shape].
        targets: [W], [W, outputs] or [W, length].
    """

    inputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, part: Part) -> Rows:
        """Returns the rows of a part, not copied."""
        return cls(torch.from_numpy(part.inputs), torch.from_numpy(part.targets))

    def at(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the inputs and targets of a batch, [B, ...] each, copied; `chosen` is [B]."""
        # Indexing copies number by number: up to seven times as long for rows of bytes.
        return self.inputs.index_select(0, chosen), self.targets.index_select(0, chosen)


def batches(
    part: Part, batch_size: int, generator: torch.Generator, *, skip: int = 0
) -> Iterator[tuple[Rows, Tensor]]:
    """Yields some rows, and which of them are the next batch, [B]; only the last may be smaller.

    The rows are good until the next batch is asked for.

    Args:
        part: All rows; each comes once.
        batch_size: Rows of a batch.
        generator: Decides the order; the same state gives the same one.
        skip: So many rows at the beginning are left out.
    """
    row_bytes = max(1, part.inputs[0].nbytes)
    block = max(1, BLOCK_BYTES // row_bytes)  # rows
    blocks = -(-len(part) // block)
    fitting = WINDOW_BLOCKS * BLOCK_BYTES // (block * row_bytes)
    together = max(fitting, -(-batch_size // block))
    if not part.is_mapped or blocks <= together:
        rows, order = Rows.of(part), torch.randperm(len(part), generator=generator)
        for chosen in _in_batches(order[skip:], batch_size):
            yield rows, chosen
        return
    window = _Window(part, block * together + batch_size)
    left = torch.empty(0, dtype=torch.int64)  # of the window, less than a batch
    # Of nearly the same size: a last one of few blocks would have batches of few places.
    windows = -(-blocks // together)
    for drawn in torch.tensor_split(torch.randperm(blocks, generator=generator), windows):
        slices = [slice(n * block, min(len(part), (n + 1) * block)) for n in drawn.tolist()]
        order = torch.randperm(sum(s.stop - s.start for s in slices), generator=generator)  # [W]
        if skip >= len(order):
            skip -= len(order)
            continue
        window.read(slices, left)
        order = torch.cat((torch.arange(len(left)), order[skip:] + len(left)))
        skip = 0
        whole = len(order) // batch_size * batch_size
        for chosen in _in_batches(order[:whole], batch_size):
            yield window.rows, chosen
        left = order[whole:]
    if len(left):
        yield window.rows, left


def _in_batches(order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yields an order, [N], in pieces of [B]; only the last may be smaller."""
    # One by one they would cost a small network's step two hundredths of its time; all at once a
    # small batch's of many rows would fill the memory.
    for start in range(0, len(order), _TOGETHER * batch_size):
        yield from torch.split(order[start : start + _TOGETHER * batch_size], batch_size)


class _Window:
    """Rows in memory that were read from all over a file.

    Args:
        part: All rows.
        most: As many as it ever holds.
    """

    def __init__(self, part: Part, most: int) -> None:
        self._part = part
        # One piece of memory for all windows: what was freed is not always taken again.
        self._held = Part(
            np.empty((most, *part.inputs.shape[1:]), part.inputs.dtype),
            np.empty((most, *part.targets.shape[1:]), part.targets.dtype),
        )
        self.rows = Rows.of(self._held)

    def read(self, slices: Sequence[slice], left: Tensor) -> None:
        """Reads rows, and puts those before them that are left of what was read before."""
        start, held = len(left), self._held
        held.inputs[:start] = held.inputs[left.numpy()]
        held.targets[:start] = held.targets[left.numpy()]
        for number, chosen in enumerate(slices):
            stop = start + chosen.stop - chosen.start
            held.inputs[start:stop] = self._part.inputs[chosen]
            held.targets[start:stop] = self._part.targets[chosen]
            start = stop
            if number % _MAPPED_BLOCKS == 0:
                self._part.release()
        self._part.release()
