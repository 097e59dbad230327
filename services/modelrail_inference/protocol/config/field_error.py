"""What is wrong with a field of a `config.pbtxt`, and numbers that are written as texts there."""

from __future__ import annotations

from modelrail_inference.model.definition import CONFIG_FILE, LoadError


def field_error(field: str, description: str) -> LoadError:
    """Returns the error that names a field, what was expected there and what is there."""
    return LoadError(f"{CONFIG_FILE}: {field}: {description}")


def parse_number(field: str, text: str, maximum: int) -> int:
    """Returns the whole number from 1 to `maximum` that a text holds.

    Raises:
        LoadError: It holds none.
    """
    # Lengths first: `int` takes long for long texts.
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and 0 < int(text) <= maximum):
        raise field_error(field, f"expected 1 to {maximum}, got {text[:20]!r}")
    return int(text)
