"""Threads that keep every CPU busy stay on one each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress


class Placement:
    """Where Linux may run the thread that makes this.

    Left to themselves two threads that compute often share one CPU, while the event loop has
    interrupted one of them on the other, and caches are cold after each move. Kept apart they
    answered 3 % more of what a model of 8 ms was asked on two CPUs. As long as a CPU is free, Linux
    knows better: which CPUs share a core, and where other programs compute.

    Args:
        cpu: The thread's own CPU; None leaves it to Linux.
        cpus: Everything that it may use otherwise.
    """

    __slots__ = ("_cpu", "_cpus", "_stays")

    def __init__(self, cpu: int | None, cpus: Sequence[int]) -> None:
        self._cpu = cpu
        self._cpus = cpus
        self._stays = False

    def stay(self, stays: bool) -> None:
        """Keeps the thread on its own CPU, or lets it use all.

        Args:
            stays: Whether all other CPUs have a thread that computes.
        """
        if self._cpu is None or stays == self._stays:
            return
        self._stays = stays
        with suppress(OSError):  # a sandbox may forbid it, or a CPU be gone; then Linux places
            os.sched_setaffinity(0, [self._cpu] if stays else self._cpus)
