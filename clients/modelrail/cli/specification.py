"""Training specifications from YAML files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from modelrail.cli.command import Failure
from modelrail.cli.fields import FieldError, check_fields
from modelrail.trainer.v1 import trainer_pb2 as pb

_MAXIMUM_BYTES = 1 << 20


def read_specification(path: Path) -> pb.TrainingJobSpec:
    """Reads a specification.

    `examples/NAME.yaml` is found in the package when it is not on the disk.

    Raises:
        Failure: There is no such file, or it is no specification; the message names the field.
    """
    text = _read(path)
    try:
        content = yaml.load(text, _UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise Failure(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        got = "an empty file" if content is None else type(content).__name__
        raise Failure(f"{path}: expected fields like `dataset:`, got {got}")
    try:
        check_fields(content, pb.TrainingJobSpec.DESCRIPTOR)
        return ParseDict(content, pb.TrainingJobSpec())
    except (FieldError, ParseError) as error:
        raise Failure(f"{path}: {error}") from error


def specification_text(spec: pb.TrainingJobSpec) -> str:
    """Returns a specification as YAML that `read_specification` reads.

    Whole numbers of 64 bits are strings in the JSON of protobuf; here they are numbers.
    """
    content = _plain(MessageToDict(spec, preserving_proto_field_name=True), spec.DESCRIPTOR)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _plain(content: dict[str, Any], message: Any) -> dict[str, Any]:
    """Returns the fields of a message, by its descriptor, in their order and numbers as numbers."""
    plain: dict[str, Any] = {}
    for field in sorted(message.fields, key=lambda one: one.number):
        if field.name not in content:
            continue
        value = content[field.name]
        if field.message_type is not None:
            below = field.message_type
            plain[field.name] = (
                [_plain(item, below) for item in value]
                if isinstance(value, list)
                else _plain(value, below)
            )
        elif field.cpp_type in {field.CPPTYPE_INT64, field.CPPTYPE_UINT64}:
            plain[field.name] = int(value)
        else:
            plain[field.name] = value
    return plain


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML forbids a key twice in a mapping; the library takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds a mapping, and refuses keys that stand twice in it."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {key!r} stands twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAXIMUM_BYTES:
            raise Failure(f"{path} is larger than {_MAXIMUM_BYTES} bytes: no specification")
        return path.read_text()
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is no text: {error}") from error
    except FileNotFoundError:
        packaged = files("modelrail").joinpath("examples", path.name)
        if path.parent.name in {"", "examples"} and packaged.is_file():
            return packaged.read_text()
        known = ", ".join(f"examples/{name}" for name in example_names())
        raise Failure(f"{path} does not exist; examples that come along: {known}") from None


def example_names() -> list[str]:
    """Returns the names of the specifications that come with the package."""
    return sorted(
        entry.name
        for entry in files("modelrail").joinpath("examples").iterdir()
        if entry.name.endswith(".yaml")
    )
