"""Training specifications from YAML files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.json_format import ParseDict, ParseError

from modelrail.cli.command import Failure
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
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Failure(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise Failure(f"{path}: expected fields like `dataset:`, got {type(content).__name__}")
    _check_fields(content, pb.TrainingJobSpec.DESCRIPTOR, "", path)
    try:
        return ParseDict(content, pb.TrainingJobSpec())
    except ParseError as error:
        raise Failure(f"{path}: {error}") from error


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


def _check_fields(content: dict[Any, Any], message: Any, at: str, path: Path) -> None:
    """Finds unknown fields before the parser does, which names neither place nor alternatives."""
    known: dict[str, Any] = {}
    for field in message.fields:
        known[field.name] = field
        known[field.json_name] = field
    for key, value in content.items():
        place = f"{at}.{key}" if at else str(key)
        field = known.get(key) if isinstance(key, str) else None
        if field is None:
            expected = ", ".join(field.name for field in message.fields) or "no fields at all"
            raise Failure(f"{path}: {place}: unknown field; expected {expected}")
        if field.message_type is None:
            continue
        for item, item_place in _messages(value, place):
            if item is None and value is None and not field.message_type.fields:
                content[key] = {}  # `linear:` says as much as `linear: {}`.
                continue
            if not isinstance(item, dict):
                fields = ", ".join(field.name for field in field.message_type.fields)
                raise Failure(
                    f"{path}: {item_place}: expected fields ({fields or 'none: write {}'}),"
                    f" got {item!r}"
                )
            _check_fields(item, field.message_type, item_place, path)


def _messages(value: Any, place: str) -> list[tuple[Any, str]]:
    if isinstance(value, list):
        return [(item, f"{place}[{index}]") for index, item in enumerate(value)]
    return [(value, place)]
