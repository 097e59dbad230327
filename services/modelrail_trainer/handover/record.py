"""Typed reading of decoded JSON.

What another process wrote is checked field by field before it is believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TypeVar, cast

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
Record = Mapping[str, object]

_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    list: "a list",
}


class RecordError(ValueError):
    """A record lacks a field, or holds one of another type; the message names it."""


def as_record(value: object, what: str) -> Record:
    """Returns the value as a JSON object.

    Raises:
        RecordError: It is something else.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{what}: expected an object, got {type(value).__name__}")
    return cast(Record, value)


def text(record: Record, field: str) -> str:
    """Returns a string field.

    Raises:
        RecordError: It is absent or something else.
    """
    return _typed(record, field, str)


def whole(record: Record, field: str) -> int:
    """Returns a whole-number field.

    Raises:
        RecordError: It is absent or something else; true and false are no numbers here.
    """
    return _typed(record, field, int)


def count(record: Record, field: str, *, most: int = 2**63 - 1) -> int:
    """Returns a whole-number field from 0 to `most`.

    Raises:
        RecordError: It is absent or something else.
    """
    number = whole(record, field)
    if not 0 <= number <= most:
        raise RecordError(f"{field}: expected a number from 0 to {most}, got {number}")
    return number


def flag(record: Record, field: str) -> bool:
    """Returns a field that is true or false.

    Raises:
        RecordError: It is absent or something else.
    """
    return _typed(record, field, bool)


def real(record: Record, field: str) -> float:
    """Returns a number field as float.

    Raises:
        RecordError: It is absent, something else, or not finite.
    """
    value = record.get(field)
    number = float(_typed(record, field, int if isinstance(value, int) else float))
    if not math.isfinite(number):
        raise RecordError(f"{field}: expected a finite number, got {number}")
    return number


def member(record: Record, field: str, members: type[E]) -> E:
    """Returns a string field as the member of an enumeration that it names.

    Raises:
        RecordError: It is absent, something else, or no member has that value.
    """
    value = text(record, field)
    try:
        return members(value)
    except ValueError:
        known = ", ".join(members)
        raise RecordError(f"{field}: expected one of {known}, got {value[:80]!r}") from None


def nested(record: Record, field: str) -> Record:
    """Returns a field that holds an object.

    Raises:
        RecordError: It is absent or something else.
    """
    return as_record(record.get(field), field)


def nested_if_any(record: Record, field: str, read: Callable[[Record], T]) -> T | None:
    """Returns a field that holds an object, read by `read`; None where it is absent or null.

    Raises:
        RecordError: It is something else, or the object is wrong.
    """
    return None if record.get(field) is None else read(nested(record, field))


def items(record: Record, field: str, read: Callable[[Record], T]) -> tuple[T, ...]:
    """Returns a field that holds a list of objects, each read by `read`.

    Raises:
        RecordError: It is absent, something else, or one of its objects is wrong.
    """
    return tuple(
        read(as_record(item, f"{field}[{position}]"))
        for position, item in enumerate(_typed(record, field, list))
    )


def values(record: Record, field: str, *types: type[T]) -> tuple[T, ...]:
    """Returns a field that holds a list of plain values, each of one of the types.

    Raises:
        RecordError: It is absent, something else, or one of its values has another type.
    """
    found = _typed(record, field, list)
    for position, value in enumerate(found):
        if type(value) not in types:
            raise RecordError(f"{field}[{position}]: unexpected {type(value).__name__}")
    return tuple(found)


def _typed(record: Record, field: str, expected: type[T]) -> T:
    value = record.get(field)
    if type(value) is not expected:
        got = "nothing" if field not in record else type(value).__name__
        raise RecordError(f"{field}: expected {_NAMES[expected]}, got {got}")
    return value
