"""Messages of ONNX Runtime, fit to travel."""

from __future__ import annotations

import re

_MAX_LENGTH = 500


def without_places(text: str) -> str:
    """Cuts source paths, file paths and code positions out of a message; makes it one line."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : ", "", text)
    text = re.sub(r"(?:[\w.+-]*/){2,}[\w.+-]+(?::\d+)?", "…", text)
    return " ".join(text.split())[:_MAX_LENGTH]
