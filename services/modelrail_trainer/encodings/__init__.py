"""Encodings of a table's columns.

To add one: a file here with its description, its fitting and what is fitted (see `encoding.py`),
its name in `ENCODINGS`, and in `trainer.proto` a message of the description's name and fields.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelrail_trainer.encodings.category import CategoryEncoding, CategoryMethod
from modelrail_trainer.encodings.encoding import Encoding, Fitted, Fitting
from modelrail_trainer.encodings.hash import HashEncoding
from modelrail_trainer.encodings.number import Missing, NumberEncoding, Scale
from modelrail_trainer.encodings.text import ByteTokens, TextEncoding, WordTokens

ColumnEncoding = NumberEncoding | CategoryEncoding | HashEncoding | TextEncoding

ENCODINGS: Mapping[str, type[Encoding]] = {
    "number": NumberEncoding,
    "category": CategoryEncoding,
    "hash": HashEncoding,
    "text": TextEncoding,
}
"""By their names in a specification."""

__all__ = [
    "ENCODINGS",
    "ByteTokens",
    "CategoryEncoding",
    "CategoryMethod",
    "ColumnEncoding",
    "Encoding",
    "Fitted",
    "Fitting",
    "HashEncoding",
    "Missing",
    "NumberEncoding",
    "Scale",
    "TextEncoding",
    "WordTokens",
]
