"""Texts of others, made harmless to show."""

from __future__ import annotations

import re

# Control characters, which terminals obey, and those that turn the direction of the text around.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Returns a text in which what cannot be seen is a mark that can; tabs and line ends stay."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)
