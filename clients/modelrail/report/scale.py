"""Scales of charts: from values to places, with round numbers along the axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LOG_SPAN = 50.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values between `low` and `high` to places between 0 and 1.

    Attributes:
        low: Value at 0.
        high: Value at 1.
        ticks: Round values between them.
        logarithmic: Whether equal ratios are equal distances.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Returns the place of a value."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear(values: Iterable[float], *, count: int = 5, whole: bool = False) -> Scale:
    """Returns a scale with round ends around the values.

    Args:
        values: What has to fit in.
        count: About how many ticks.
        whole: Whether only whole numbers are ticks.
    """
    low, high = _span(values)
    step = _round_step((high - low) / count)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(place * step for place in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def tight(low: float, high: float, *, count: int = 6) -> Scale:
    """Returns a scale with just these ends, whole numbers along it."""
    if high <= low:
        high = low + 1
    step = float(math.ceil(max(1.0, _round_step((high - low) / count))))
    first, last = math.ceil(low / step), math.floor(high / step)
    return Scale(low, high, tuple(place * step for place in range(first, last + 1)))


def of_curve(values: Sequence[float]) -> Scale:
    """Returns a logarithmic scale for values that span much, else a linear one."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low <= 0 or high / low < _LOG_SPAN:
        return linear(values)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // 6))
    ticks = tuple(10.0**power for power in range(first, last + 1, every))
    return Scale(10.0**first, 10.0**last, ticks, logarithmic=True)


def shown(value: float) -> str:
    """Returns a number for people: `0.25`, `1,500`, `3e-7`."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _span(values: Iterable[float]) -> tuple[float, float]:
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        wide = abs(low) / 2 or 1.0
        return low - wide, high + wide
    return low, high


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if step <= factor * power * 1.001)
