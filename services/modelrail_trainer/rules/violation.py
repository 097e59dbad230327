"""A broken rule, and the rules about single fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Violation(NamedTuple):
    """One wrong field: its path below the specification, and what was expected and what was got."""

    field: str
    description: str


def nothing_set(field: str, *choices: str) -> Violation:
    """Returns the violation of a oneof in which nothing was set."""
    return Violation(field, f"expected one of: {', '.join(choices)}; got none of them")


def shown(text: str, most: int = 80) -> str:
    """Returns a text quoted, and cut when it is long."""
    return repr(text if len(text) <= most else text[:most] + "…")


def whole(field: str, value: int, least: int, most: int | None = None) -> Iterator[Violation]:
    """Refuses a whole number outside [least, most]."""
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        yield Violation(field, f"expected a whole number {bounds}, got {value}")


def widths(
    field: str, sizes: tuple[int, ...], noun: str, most_layers: int, most_units: int
) -> Iterator[Violation]:
    """Refuses no layers, too many of them, and a layer without units or with too many."""
    if not 1 <= len(sizes) <= most_layers:
        yield Violation(field, f"expected from 1 to {most_layers} {noun}, got {len(sizes)}")
        return
    for position, width in enumerate(sizes):
        yield from whole(f"{field}[{position}]", width, 1, most_units)


def real(
    field: str,
    value: float,
    expected: str,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Iterator[Violation]:
    """Refuses a number that is not finite or not in [least, most] ∩ (above, below)."""
    # NaN fails every comparison and infinity the finiteness, so neither slips through.
    if not (math.isfinite(value) and least <= value <= most and above < value < below):
        yield Violation(field, f"expected {expected}, got {value:g}")
