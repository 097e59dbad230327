"""The file that names the bound addresses while a server serves."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["remove_address_file", "write_address_file"]


def write_address_file(
    file: Path | None, *, service: str, grpc_address: str, metrics_address: str
) -> None:
    """Writes the file in one step; nothing without a file."""
    if file is None:
        return
    content = {
        "service": service,
        "pid": os.getpid(),
        "grpc_address": grpc_address,
        "metrics_address": metrics_address,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(descriptor, "w") as stream:
        json.dump(content, stream)
    Path(temporary).replace(file)


def remove_address_file(file: Path | None) -> None:
    """Removes the file if this process has written it."""
    if file is None:
        return
    # A successor that was started with the same file has written its own by now.
    with suppress(OSError, ValueError):
        if json.loads(file.read_text())["pid"] == os.getpid():
            file.unlink()
