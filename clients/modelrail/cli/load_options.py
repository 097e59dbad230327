"""What users type about the load of a test, as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from modelrail.bench import ClosedLoop, Load, Objective, ObjectiveError, OpenLoop, PlanError
from modelrail.cli.session import UsageError

__all__ = ["read_load", "read_objectives", "read_ranges", "read_shapes"]

_Number = TypeVar("_Number", int, float)


def read_load(
    concurrency: int | None, rate: float | None, max_outstanding: int, sweep: str | None
) -> tuple[Load, list[float]]:
    """Returns the load, and the values of a sweep; none of them for a single run.

    The load of a sweep is the one of its values that has most requests in flight.

    Args:
        concurrency: Requests in flight, for a closed loop.
        rate: Requests in a second, for an open loop.
        max_outstanding: Most requests in flight in an open loop.
        sweep: `concurrency:1,2,4` or `rate:100,200`.

    Raises:
        UsageError: More than one of them is given, or the sweep has another form or a value that
            is out of range.
        PlanError: Another value is out of range.
    """
    given = [
        flag
        for flag, value in (("--concurrency", concurrency), ("--rate", rate), ("--sweep", sweep))
        if value is not None
    ]
    if len(given) > 1:
        raise UsageError(f"expected one of --concurrency, --rate and --sweep, got {given}")
    if rate is not None:
        return OpenLoop(rate, max_outstanding), []
    if sweep is None:
        return ClosedLoop(1 if concurrency is None else concurrency), []
    kind, _, text = sweep.partition(":")
    values = _numbers(text, float)
    if kind not in {"concurrency", "rate"} or not values:
        raise UsageError(
            f"--sweep {sweep}: expected concurrency:N1,N2,… or rate:R1,R2,… with numbers"
        )
    load = OpenLoop(1.0, max_outstanding) if kind == "rate" else ClosedLoop(1)
    try:
        loads = [load.of_value(value) for value in values]
    except PlanError as error:
        raise UsageError(f"--sweep {error}") from error
    return max(loads, key=lambda load: load.in_flight), values


def read_objectives(texts: Sequence[str]) -> list[Objective]:
    """Returns objectives.

    Raises:
        UsageError: A text is none.
    """
    try:
        return [Objective.parse(text) for text in texts]
    except ObjectiveError as error:
        raise UsageError(f"--slo {error}") from error


def read_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Returns sizes by input, from `NAME:D1,D2`; `NAME:` is a scalar.

    Raises:
        UsageError: A text has another form, or a name stands twice.
    """
    return {
        name: tuple(sizes) for name, sizes in _by_name("--shape", "NAME:D1,D2", texts, int).items()
    }


def read_ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns limits by input, from `NAME:LOW,HIGH`.

    Raises:
        UsageError: A text has another form, or a name stands twice.
    """
    ranges = {}
    for name, limits in _by_name("--range", "NAME:LOW,HIGH", texts, _number).items():
        if len(limits) != 2:
            raise UsageError(f"--range {name}: expected LOW,HIGH, got {len(limits)} numbers")
        ranges[name] = (limits[0], limits[1])
    return ranges


def _by_name(
    flag: str, form: str, texts: Sequence[str], number: Callable[[str], _Number]
) -> dict[str, list[_Number]]:
    found: dict[str, list[_Number]] = {}
    for text in texts:
        # Names of inputs may hold colons themselves: `serving_default_x:0`.
        name, colon, numbers = text.rpartition(":")
        values = _numbers(numbers, number)
        if not colon or not name or values is None:
            raise UsageError(f"{flag} {text}: expected {form}")
        if name in found:
            raise UsageError(f"{flag} {name}: expected once, got twice")
        found[name] = values
    return found


def _number(text: str) -> float:
    """Returns a whole number as that: the greatest ones of 64 bits fit no float."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _numbers(text: str, number: Callable[[str], _Number]) -> list[_Number] | None:
    """Returns the numbers of `1,2,3`; None when something else stands there."""
    try:
        return [number(part) for part in text.split(",")] if text else []
    except ValueError:
        return None
