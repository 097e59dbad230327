"""Which part of the data a row belongs to, by a hash of its number or of its group."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from modelrail_trainer.spec import Split
from modelrail_trainer.worker.part import PartOfRow


def parts_of(split: Split, numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Returns the part of each row, [rows], by its number in `numbers`, [rows].

    It follows from the row's number and the seed alone, so rows need not be held to divide them.
    """
    return _parts_at(_mixed(numbers.astype(np.uint64), split.seed) / 2.0**64, split)


def parts_of_groups(split: Split, groups: npt.NDArray[np.object_]) -> npt.NDArray[np.uint8]:
    """Returns the part of each row, [rows], by the text of its group in `groups`, [rows].

    It follows from the text and the seed alone: equal texts fall into one part, wherever they are.
    """
    places = {text: _place(text, split.seed) for text in set(groups.tolist())}
    at = np.fromiter((places[text] for text in groups.tolist()), np.float64, len(groups))
    return _parts_at(at, split)


def _parts_at(place: npt.NDArray[np.float64], split: Split) -> npt.NDArray[np.uint8]:
    """Returns the part for each place, [rows], evenly in [0, 1)."""
    parts = np.full(len(place), PartOfRow.TRAIN, np.uint8)
    parts[place < split.test_fraction + split.validation_fraction] = PartOfRow.VALIDATION
    parts[place < split.test_fraction] = PartOfRow.TEST
    return parts


def _place(text: str, seed: int) -> float:
    """Hashes a text to a number in [0, 1): BLAKE2b (Saarinen and Aumasson, RFC 7693)."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt)
    # The highest 53 bits, so that rounding never makes 1 of it.
    return (int.from_bytes(digest.digest(), "little") >> 11) / 2.0**53


def _mixed(numbers: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Mixes the bits of each number: SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64((seed * 0xD1342543DE82EF95) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
