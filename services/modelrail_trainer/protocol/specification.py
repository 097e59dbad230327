"""From a job specification in protobuf to the trainer's own.

A description has the name of its message, and its fields have the names of the message's fields, so
one reading serves them all; a contract test tells where they differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf import struct_pb2
from google.protobuf.message import Message

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec

T = TypeVar("T")
_Choice = TypeVar("_Choice", bound=StrEnum)


def spec_from_pb(message: pb.TrainingJobSpec) -> spec.TrainingJobSpec:
    """Reads a specification as it stands; `spec.validate` tells whether it is a good one."""
    return _description(message, spec.TrainingJobSpec)


def _description(message: Message, kind: type[T]) -> T:
    """Returns what a message describes; what is no field of it keeps its default."""
    known = {*message.DESCRIPTOR.fields_by_name, *message.DESCRIPTOR.oneofs_by_name}
    values = {
        field.name: _field(message, field, _alternatives(kind)[field.name])  # type: ignore[arg-type]  # classes are hashable
        for field in fields(kind)  # type: ignore[arg-type]  # a dataclass
        if field.name in known
    }
    return kind(**values)


@cache
def _alternatives(kind: Hashable) -> Mapping[str, tuple[type, ...]]:
    """Returns for each field of a description the classes that its value can be of, without None.

    Of a tuple they are those of its items.
    """
    hints = get_type_hints(kind)
    items = {n: get_args(h)[0] if get_origin(h) is tuple else h for n, h in hints.items()}
    return {
        name: tuple(one for one in get_args(hint) or (hint,) if one is not NoneType)
        for name, hint in items.items()
    }


def _field(message: Message, field: Field[Any], kinds: tuple[type, ...]) -> Any:
    default = None if field.default is MISSING else field.default
    if field.name in message.DESCRIPTOR.oneofs_by_name:
        return _chosen(message, field.name, kinds, default)
    value = getattr(message, field.name)
    described = message.DESCRIPTOR.fields_by_name[field.name]
    if described.is_repeated:
        return tuple(_value(item, kinds) for item in value)
    if described.enum_type is not None:
        return _named(described.enum_type, value, kinds[0], default)
    if described.message_type is not None and field.default is None:
        return _value(value, kinds) if message.HasField(field.name) else None
    return _value(value, kinds)


def _value(value: Any, kinds: tuple[type, ...]) -> Any:
    match value:
        case struct_pb2.Struct():
            return _arguments(value)
        case Message() if len(kinds) == 1 and is_dataclass(kinds[0]):
            return _description(value, kinds[0])
        case Message():  # around nothing but a oneof
            (oneof,) = value.DESCRIPTOR.oneofs_by_name
            return _chosen(value, oneof, kinds, None)
        case _:
            return value


def _chosen(message: Message, oneof: str, kinds: tuple[type, ...], default: Any) -> Any:
    """Returns the description that was set of a oneof; the default where none was."""
    name = message.WhichOneof(oneof)
    if name is None:
        return default
    value = getattr(message, name)
    if not isinstance(value, Message):
        return spec.BundledDataset(name=value)  # the only one that is no message
    (kind,) = (one for one in kinds if one.__name__ == value.DESCRIPTOR.name)
    return _description(value, kind)


def _named(enum: Any, number: int, kind: type[_Choice], default: _Choice | None) -> _Choice | None:
    """Returns the value of an enumeration: its default where it is unspecified.

    So is one that only a newer client knows, as proto3 hands it on: `requests.py` has refused it
    before.
    """
    found = enum.values_by_number.get(number)
    if found is None or number == 0:
        return default
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return kind(found.name.removeprefix(prefix).lower())


def _arguments(message: struct_pb2.Struct) -> Mapping[str, Any]:
    return {name: _argument(value) for name, value in message.fields.items()}


def _argument(message: struct_pb2.Value) -> Any:
    match message.WhichOneof("kind"):
        case "number_value":
            number = message.number_value
            # JSON has one kind of number; a width of 64.0 would be no width.
            return int(number) if number.is_integer() else number
        case "string_value":
            return message.string_value
        case "bool_value":
            return message.bool_value
        case "list_value":
            return [_argument(item) for item in message.list_value.values]
        case "struct_value":
            return dict(_arguments(message.struct_value))
        case _:
            return None
