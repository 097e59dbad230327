"""Typed reading of decoded JSON.

What another process wrote is checked field by field before it is believed. What is read here fits a
field of a message and a column of the database: texts are Unicode, numbers have 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TypeVar, cast

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
Record = Mapping[str, object]

MOST_INT32 = 2**31 - 1
MOST_INT64 = 2**63 - 1
_MOST_CHARACTERS = 64 * 1024
_MOST_NAME_CHARACTERS = 1_000

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


def as_text(value: str, what: str, most: int) -> str:
    """Returns a text of at most so many characters.

    Raises:
        RecordError: It is longer, or holds half a surrogate pair, which is no UTF-8.
    """
    if len(value) > most:
        raise RecordError(f"{what}: expected at most {most} characters, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(
            f"{what}: expected a text of whole characters, got {value[:80]!r}"
        ) from None
    return value


def text(record: Record, field: str, *, most: int = _MOST_CHARACTERS) -> str:
    """Returns a string field of at most so many characters.

    Raises:
        RecordError: It is absent, something else, too long, or holds half a surrogate pair, which
            is no UTF-8.
    """
    return as_text(_typed(record, field, str), field, most)


def texts(record: Record, field: str) -> dict[str, str]:
    """Returns a field that holds an object of strings.

    Raises:
        RecordError: It is absent or something else, or one of its names or values is no text.
    """
    found = nested(record, field)
    return {name: text(found, name) for name in names(found, field)}


def names(record: Record, what: str) -> tuple[str, ...]:
    """Returns the names of an object's fields.

    Raises:
        RecordError: One is too long, or no text.
    """
    return tuple(as_text(name, what, _MOST_NAME_CHARACTERS) for name in record)


def whole(record: Record, field: str) -> int:
    """Returns a whole-number field of 64 bits.

    Raises:
        RecordError: It is absent or something else; true and false are no numbers here.
    """
    return _as_whole(_typed(record, field, int), field, -MOST_INT64 - 1, MOST_INT64)


def count(record: Record, field: str, *, most: int = MOST_INT64) -> int:
    """Returns a whole-number field from 0 to `most`.

    Raises:
        RecordError: It is absent or something else.
    """
    return _as_whole(_typed(record, field, int), field, 0, most)


def flag(record: Record, field: str) -> bool:
    """Returns a field that is true or false.

    Raises:
        RecordError: It is absent or something else.
    """
    return _typed(record, field, bool)


def real(record: Record, field: str, *, least: float = -math.inf, most: float = math.inf) -> float:
    """Returns a number field as float, from `least` to `most`.

    Raises:
        RecordError: It is absent, something else, out of its bounds, or not finite.
    """
    value = record.get(field)
    try:
        number = float(_typed(record, field, int if isinstance(value, int) else float))
    except OverflowError as error:
        raise RecordError(f"{field}: expected a finite number, got a larger one") from error
    if not math.isfinite(number):
        raise RecordError(f"{field}: expected a finite number, got {number}")
    if not least <= number <= most:
        raise RecordError(f"{field}: expected a number from {least:g} to {most:g}, got {number:g}")
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


def items(
    record: Record, field: str, read: Callable[[Record], T], *, most: int | None = None
) -> tuple[T, ...]:
    """Returns a field that holds a list of objects, each read by `read`.

    Raises:
        RecordError: It is absent, something else, longer than `most`, or one of its objects is
            wrong.
    """
    found = _typed(record, field, list)
    if most is not None and len(found) > most:
        raise RecordError(f"{field}: expected at most {most}, got {len(found)}")
    return tuple(
        read(as_record(item, f"{field}[{position}]")) for position, item in enumerate(found)
    )


def values(record: Record, field: str, *types: type[T]) -> tuple[T, ...]:
    """Returns a field that holds a list of plain values, each of one of the types.

    Raises:
        RecordError: It is absent, something else, or one of its values has another type, is no
            text, or has more than 64 bits.
    """
    found = _typed(record, field, list)
    for position, value in enumerate(found):
        what = f"{field}[{position}]"
        if type(value) not in types:
            raise RecordError(f"{what}: unexpected {type(value).__name__}")
        if isinstance(value, str):
            as_text(value, what, _MOST_CHARACTERS)
        elif isinstance(value, int):
            _as_whole(value, what, -MOST_INT64 - 1, MOST_INT64)
    return tuple(found)


def _as_whole(value: int, what: str, least: int, most: int) -> int:
    if not least <= value <= most:
        # More digits than this are nothing to read, and none to send on.
        got = str(value) if value.bit_length() <= 128 else f"one of {value.bit_length()} bits"
        raise RecordError(f"{what}: expected a number from {least} to {most}, got {got}")
    return value


def _typed(record: Record, field: str, expected: type[T]) -> T:
    value = record.get(field)
    if type(value) is not expected:
        got = "nothing" if field not in record else type(value).__name__
        raise RecordError(f"{field}: expected {_NAMES[expected]}, got {got}")
    return value
