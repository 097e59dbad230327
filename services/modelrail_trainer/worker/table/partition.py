"""Which part of the data a row belongs to."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from modelrail_trainer.spec import Split


class PartOfRow(IntEnum):
    """The parts."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


def parts_of(split: Split, first_row: int, rows: int) -> npt.NDArray[np.uint8]:
    """Returns the part of each of `rows` rows, [rows], the first of which has number `first_row`.

    It follows from the row's number and the seed alone, so rows need not be held to divide them.
    """
    numbers = np.arange(first_row, first_row + rows, dtype=np.uint64)
    place = _mixed(numbers, split.seed) / 2.0**64  # [rows], evenly in [0, 1)
    parts = np.full(rows, PartOfRow.TRAIN, np.uint8)
    parts[place < split.test_fraction + split.validation_fraction] = PartOfRow.VALIDATION
    parts[place < split.test_fraction] = PartOfRow.TEST
    return parts


def _mixed(numbers: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Mixes the bits of each number: SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64((seed * 0xD1342543DE82EF95) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
