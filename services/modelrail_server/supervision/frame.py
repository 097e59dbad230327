"""Messages between supervisor and worker: four bytes of length, then that much JSON."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import Any

__all__ = ["MAX_FRAME_BYTES", "FrameError", "encode_frame", "read_frame"]

MAX_FRAME_BYTES = 64 << 20
"""Largest message; the metrics of a thousand models are about 15 MB."""

_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """A message is too large, or no JSON object."""


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a message.

    Raises:
        FrameError: It is larger than `MAX_FRAME_BYTES`.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"expected at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Returns the next message; None when the other side has closed, even amid a message.

    Raises:
        FrameError: What came is no message.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise FrameError(f"expected at most {MAX_FRAME_BYTES} bytes, got {length}")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        message = json.loads(body)
    except ValueError as error:
        raise FrameError(f"expected JSON: {error}") from error
    if not isinstance(message, dict):
        raise FrameError(f"expected a JSON object, got {type(message).__name__}")
    return message
