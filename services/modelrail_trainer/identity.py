"""The id of a trainer: made with its data directory, and the same after every restart."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from modelrail_server.config import ConfigError

_FILE = "trainer.id"
_FORM = re.compile(r"trainer-[0-9a-f]{16}")


def trainer_id(data_dir: Path) -> str:
    """Returns the id of the trainer that owns the directory, made when it has none yet.

    Raises:
        ConfigError: It cannot be kept, or is none.
    """
    file = data_dir / _FILE
    try:
        if not file.exists():
            # Whole or not at all, whatever happens in between.
            made = file.with_suffix(".new")
            with made.open("w") as text:
                text.write(f"trainer-{secrets.token_hex(8)}")
                text.flush()
                os.fsync(text.fileno())
            made.rename(file)
        found = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("data_dir", f"cannot keep {file}: {error}") from error
    if _FORM.fullmatch(found) is None:
        raise ConfigError("data_dir", f"expected the id of a trainer in {file}, got something else")
    return found
