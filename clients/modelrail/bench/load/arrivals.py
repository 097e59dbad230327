"""When requests are due in an open loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["count_arrivals", "poisson_arrivals"]

_CHUNK = 1024
_FOREVER_NS = 1 << 62
"""Later times would not fit 64 bits, and come out as times long gone."""


def poisson_arrivals(rate: float, *, seed: tuple[int, ...]) -> Iterator[int]:
    """Yields the times of a Poisson process in nanoseconds after its start, without end.

    Several processes with seeds of their own together are a Poisson process of the summed rate.

    Args:
        rate: Arrivals in a second on average.
        seed: The same seed yields the same times.
    """
    generator = np.random.default_rng(seed)
    now = 0.0
    while True:
        times = now + np.cumsum(generator.exponential(1e9 / rate, _CHUNK))
        now = float(times[-1])
        yield from np.minimum(times, _FOREVER_NS).astype(np.int64).tolist()


def count_arrivals(rate: float, seconds: float, *, seed: tuple[int, ...]) -> int:
    """Returns how many arrivals of a Poisson process come in a time, without making each of them.

    Args:
        rate: Arrivals in a second on average.
        seconds: How long the time is.
        seed: The same seed yields the same count.
    """
    return int(np.random.default_rng(seed).poisson(rate * seconds))
