"""Texts for clients, who see no paths of this machine."""

from __future__ import annotations

import re

# Directories of absolute paths: a file's own name says enough. In quotes they may have spaces.
_DIRECTORIES = re.compile(
    r"""(?<=["'])/(?:[^/"'\n]+/)+|(?:(?<=\bfile://)|(?<![\w./]))/(?:[^\s/"':]+/)+"""
)


def without_directories(text: str) -> str:
    """Returns a text in which absolute paths are cut down to the file's own name."""
    return _DIRECTORIES.sub("", text)
