"""Recognises content that the registry does not take: code in disguise, and boxes that hide it."""

from __future__ import annotations

import re

HEAD_BYTES = 4096
TAIL_BYTES = 1

# Protocols 2 and up begin with PROTO; the text protocols have no magic number, but name what they
# call.
_BINARY_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_TEXT_PICKLE = re.compile(rb"(?:^|[^\w])[ci][A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-zip archive",
}
_TAR_MAGIC_OFFSET = 257


def refused_kind(head: bytes, last: bytes) -> str:
    """Returns what refused kind of content this is, empty when it is none.

    Args:
        head: The first `HEAD_BYTES` bytes, or all when there are fewer.
        last: The last byte.
    """
    # Every pickle ends with STOP. One that does not can still run code before it fails, so
    # for the kind with a magic number the end is not asked for.
    if _BINARY_PICKLE.match(head) or (last == b"." and _TEXT_PICKLE.search(head)):
        return "a pickle"
    for magic, kind in _ARCHIVES.items():
        if head.startswith(magic):
            return kind
    if head[_TAR_MAGIC_OFFSET : _TAR_MAGIC_OFFSET + 5] == b"ustar":
        return "a tar archive"
    return ""
