"""Counts of real numbers in bins that are as fine as a float with nine bits of fraction.

One table of fixed size serves numbers of any scale: what is compared or drawn afterwards is right
to 1 part in 512, however many numbers there were.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BITS = 18  # sign, the 8 bits of a float32's exponent, and 9 of its fraction
_DROPPED = 32 - _BITS
_LARGEST = 3e38
_SIGN = np.uint32(1 << 31)


class RealCounts:
    """How often each number came, numbers that are nearly equal together.

    Attributes:
        counts: By bin, in the order of the numbers, int64 [2¹⁸].
    """

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(1 << _BITS, np.int64)

    def add(self, numbers: npt.NDArray[np.float64]) -> None:
        """Counts numbers, [N]; what is none counts as an end of the line."""
        bits = np.clip(numbers, -_LARGEST, _LARGEST).astype(np.float32).view(np.uint32)  # [N]
        # Floats sort like whole numbers, but for the sign: negative ones are turned round.
        keys = np.where(bits & _SIGN, ~bits, bits | _SIGN) >> _DROPPED
        np.add.at(self.counts, keys, 1)

    def numbers(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Returns the numbers that came, the middles of their bins, ascending, and how often."""
        (keys,) = np.nonzero(self.counts)
        middle = (keys.astype(np.uint32) << _DROPPED) | np.uint32(1 << (_DROPPED - 1))
        bits = np.where(middle & _SIGN, middle & ~_SIGN, ~middle).astype(np.uint32)
        return bits.view(np.float32).astype(np.float64), self.counts[keys]
