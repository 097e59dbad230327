"""Scales of charts: from values to places, with round numbers along the axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LOG_SPAN = 50.0
# Nearer to the ends of the floats a span, a step or a tick beside the values would be none.
_LARGEST = 1e300
_SMALLEST = 1e-300


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
        """Returns the place of a value; of one beyond an end, the place of that end."""
        if self.logarithmic:
            value, low, high = (math.log(max(x, _SMALLEST)) for x in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))


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
    low, high = _span(values)
    if low <= 0:
        return linear(values)
    low = max(low, _SMALLEST)
    # The ratio of two floats may be none.
    if math.log(high) - math.log(low) < math.log(_LOG_SPAN):
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
    found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = (min(_LARGEST, max(-_LARGEST, end)) for end in (min(found), max(found)))
    if high - low <= max(1e-12 * max(abs(low), abs(high)), _SMALLEST):
        wide = abs(low) / 2 if abs(low) > _SMALLEST else 1.0
        return low - wide, high + wide
    return low, high


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if step <= factor * power * 1.001)
