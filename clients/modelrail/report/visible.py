"""Texts of others, made harmless to show."""

from __future__ import annotations

import re

# Control characters, which terminals obey, and those that turn the direction of the text around.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


_BREAKS = re.compile("[\t\n\u2028\u2029]")


def visible(text: str) -> str:
    """Returns a text in which what cannot be seen is a mark that can; tabs and line ends stay."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def on_one_line(text: str) -> str:
    """Returns a text as `visible` does, with marks for tabs and line ends as well."""
    return _BREAKS.sub("\N{REPLACEMENT CHARACTER}", visible(text))


def visible_json(document: str) -> str:
    """Returns a JSON document of the same content, with escapes for what cannot be seen."""
    # Outside of its texts a document holds no such characters.
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", document)
