"""The order of an epoch's rows, and the pages of files that reading them leaves."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from modelrail_trainer.worker.learning.order import (
    BLOCK_BYTES,
    WINDOW_BLOCKS,
    batches,
)
from modelrail_trainer.worker.part import Part, file_of

_ROW = 4096  # numbers: 4 rows make a block
_BLOCK = BLOCK_BYTES // (4 * _ROW)
_WINDOW = _BLOCK * WINDOW_BLOCKS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mapped(path: Path, rows: int, row: int = _ROW) -> Part:
    """Returns rows that lie in a file; the first number of each is its own."""
    part = Part(
        np.memmap(path / "features", np.float32, "w+", shape=(rows, row)),
        np.memmap(path / "targets", np.int64, "w+", shape=(rows,)),
    )
    part.inputs[:, 0] = part.targets[:] = np.arange(rows)
    return part


def resident_kilobytes(path: Path) -> int:
    """Returns how much of the mapped files under a folder counts as memory of this process."""
    maps = re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE
    )
    return sum(int(re.findall(r"^Rss: +(\d+)", m, re.MULTILINE)[0]) for m in maps if str(path) in m)


def numbers(part: Part, batch_size: int, seed: int = 0, skip: int = 0) -> list[torch.Tensor]:
    """Returns the targets of the batches, which are the numbers of the rows."""
    found = []
    for rows, chosen in batches(part, batch_size, seeded(seed), skip=skip):
        assert torch.equal(rows.inputs[chosen][:, 0], rows.targets[chosen].float())
        found.append(rows.targets[chosen])
    return found


def test_rows_in_memory_come_in_one_random_order() -> None:
    row = np.arange(3 * _WINDOW)
    part = Part(row.astype(np.float32)[:, None], row)
    order = torch.cat(numbers(part, 1000, 5))
    assert torch.equal(order, torch.randperm(len(part), generator=seeded(5)))


def test_a_file_that_fits_into_a_window_comes_in_the_same_order_as_memory(tmp_path: Path) -> None:
    order = torch.cat(numbers(mapped(tmp_path, _WINDOW), 1000, 5))
    assert torch.equal(order, torch.randperm(_WINDOW, generator=seeded(5)))


def test_a_large_file_gives_each_row_once_from_blocks_all_over_it(tmp_path: Path) -> None:
    part = mapped(tmp_path, 2 * _WINDOW + 3)  # three windows, of a third of the rows each
    order = torch.cat(numbers(part, 100))
    assert torch.equal(order.sort().values, torch.arange(len(part)))
    for window in torch.tensor_split(order, 3):
        touched = torch.unique(window // _BLOCK)
        assert 2 / 3 * WINDOW_BLOCKS - 2 <= len(touched) <= 2 / 3 * WINDOW_BLOCKS + 3
        assert touched.max() - touched.min() > WINDOW_BLOCKS
        # Rows of one block do not follow each other.
        assert (window[1:] // _BLOCK == window[:-1] // _BLOCK).float().mean() < 0.02
    assert not torch.equal(order, torch.cat(numbers(part, 100, seed=1)))


@pytest.mark.parametrize("batch_size", [1000, _WINDOW + 7, 2 * _WINDOW + 5])
def test_batches_are_full_across_windows(tmp_path: Path, batch_size: int) -> None:
    part = mapped(tmp_path, 2 * _WINDOW + 5)
    whole = numbers(part, batch_size)
    assert {len(batch) for batch in whole[:-1]} <= {batch_size}
    assert len(whole) == -(-len(part) // batch_size)
    assert torch.equal(torch.cat(whole).sort().values, torch.arange(len(part)))


@pytest.mark.parametrize("skip", [0, 1000, _WINDOW, _WINDOW + 904, 2 * _WINDOW + 5])
def test_an_epoch_goes_on_in_the_same_order_from_every_place(tmp_path: Path, skip: int) -> None:
    part = mapped(tmp_path, 2 * _WINDOW + 5)
    whole = torch.cat(numbers(part, 1000))
    rest = numbers(part, 1000, skip=skip)
    assert torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *rest]), whole[skip:])


def test_rows_larger_than_a_block_come_in_a_random_order_and_small_windows(tmp_path: Path) -> None:
    row = 2 * BLOCK_BYTES // 4  # numbers
    part = mapped(tmp_path, WINDOW_BLOCKS + 44, row)
    held = {len(rows.inputs) for rows, _ in batches(part, 8, seeded())}
    assert held == {WINDOW_BLOCKS // 2 + 8}
    order = torch.cat(numbers(part, 8))
    assert torch.equal(order.sort().values, torch.arange(len(part)))
    assert (order[1:] - order[:-1]).abs().float().mean() > len(part) / 4  # a third, at random


def test_little_of_a_large_file_is_mapped_at_a_time(tmp_path: Path) -> None:
    part = mapped(tmp_path, 3 * _WINDOW)
    assert resident_kilobytes(tmp_path) > 0  # written
    part.release()
    for rows, chosen in batches(part, 1000, seeded()):
        rows.inputs[chosen].sum()
        assert resident_kilobytes(tmp_path) == 0


def test_reading_in_order_leaves_little_mapped(tmp_path: Path) -> None:
    part = mapped(tmp_path, 3 * _WINDOW)
    part.release()
    most = 0
    for chosen in part.slices(256):
        part.inputs[chosen].sum()
        most = max(most, resident_kilobytes(tmp_path))
    assert 0 < most < 2 * BLOCK_BYTES * WINDOW_BLOCKS >> 10
    assert resident_kilobytes(tmp_path) == 0


def test_what_was_released_is_read_again(tmp_path: Path) -> None:
    part = mapped(tmp_path, 10, 2)
    part.inputs[:] = np.arange(20).reshape(10, 2)
    part.release()
    assert part.inputs.sum() == 190


def test_windows_that_overlap_lie_in_their_file_too(tmp_path: Path) -> None:
    stream = np.memmap(tmp_path / "stream", np.uint8, "w+", shape=(100,))
    rows = np.lib.stride_tricks.sliding_window_view(stream[3:], 8)[::4]
    assert file_of(rows) is stream
    assert file_of(np.zeros(3)) is None
