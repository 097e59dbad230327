"""Finds what is wrong with the fields of a message before the JSON parser of protobuf does.

The parser names neither the place nor what it expected, and takes a field under two spellings.
"""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

_Kind = FieldDescriptor
_WHOLE = {
    _Kind.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _Kind.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _Kind.CPPTYPE_UINT32: (0, 2**32 - 1),
    _Kind.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class FieldError(ValueError):
    """A field that cannot be: where it stands, what was expected, and what is there."""


def check_fields(content: dict[Any, Any], message: Any, at: str = "") -> None:
    """Returns when every field is known, stands once, and holds a value of its type.

    Empty messages may be written as `linear:`; they become `linear: {}` in `content`.

    Args:
        content: Field names, as in the proto file or in lowerCamelCase, to values.
        message: Descriptor of the message that they make.
        at: Path of the message, for errors.

    Raises:
        FieldError: Names the first field that is wrong.
    """
    known = {name: field for field in message.fields for name in (field.name, field.json_name)}
    seen: dict[str, str] = {}
    for key, value in content.items():
        place = f"{at}.{key}" if at else str(key)
        field = known.get(key) if isinstance(key, str) else None
        if field is None:
            expected = ", ".join(field.name for field in message.fields) or "no fields at all"
            raise FieldError(f"{place}: unknown field; expected {expected}")
        group = field.containing_oneof
        slot = field.name if group is None else f"one of {', '.join(f.name for f in group.fields)}"
        if slot in seen:
            expected = field.name if group is None else slot
            raise FieldError(f"{place}: expected {expected} once, got {seen[slot]} and {key}")
        seen[slot] = key
        if value is None and field.message_type and not field.message_type.fields:
            content[key] = {}
            continue
        if not field.is_repeated:
            _check_value(value, field, place)
        elif not isinstance(value, list):
            raise FieldError(f"{place}: expected a list, got {_shown(value)}")
        else:
            for index, item in enumerate(value):
                _check_value(item, field, f"{place}[{index}]")


def _check_json(value: Any, place: str) -> None:
    """Checks a value of any kind that JSON has."""
    match value:
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise FieldError(f"{place}: expected names that are texts, got {_shown(key)}")
                _check_json(item, f"{place}.{key}")
        case list():
            for index, item in enumerate(value):
                _check_json(item, f"{place}[{index}]")
        case float() if not math.isfinite(value):
            raise FieldError(f"{place}: expected a finite number, got {_shown(value)}")
        case None | bool() | str() | int() | float():
            pass
        case _:
            raise FieldError(
                f"{place}: expected a number, a text, true, false, null, a list or a mapping, got "
                f"{_shown(value)}; a date is a text in quotes"
            )


def _check_value(value: Any, field: FieldDescriptor, place: str) -> None:
    if field.message_type is not None:
        if not isinstance(value, dict):
            fields = ", ".join(field.name for field in field.message_type.fields)
            if field.message_type.full_name == "google.protobuf.Struct":
                fields = "names and values"
            raise FieldError(
                f"{place}: expected fields ({fields or 'none: write {}'}), got {_shown(value)}"
            )
        if field.message_type.full_name == "google.protobuf.Struct":
            _check_json(value, place)
        else:
            check_fields(value, field.message_type, place)
    elif field.cpp_type in _WHOLE:
        least, most = _WHOLE[field.cpp_type]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise FieldError(
                f"{place}: expected a whole number from {least} to {most}, got {_shown(value)}"
            )
    elif field.cpp_type in {_Kind.CPPTYPE_DOUBLE, _Kind.CPPTYPE_FLOAT}:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise FieldError(f"{place}: expected a number, got {_shown(value)}")
    elif field.cpp_type == _Kind.CPPTYPE_STRING and not isinstance(value, str):
        raise FieldError(f"{place}: expected text, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
