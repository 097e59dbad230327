"""The directory that one running service owns."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelrail_server.config import ConfigError


@contextmanager
def owned_data_directory(path: Path, *, service: str) -> Iterator[Path]:
    """Makes the directory and owns it until the context ends, or the process does.

    Programs that the service starts do not inherit the lock: one that outlives the service does
    not keep the next service out.

    Args:
        path: Where the service keeps its data.
        service: Short name, like `registry`.

    Raises:
        ConfigError: It cannot be made or written, or another such service owns it.
    """
    make_data_directory(path)
    try:
        lock = os.open(path / f"{service}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable("write", path, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError("data_dir", f"{path} is in use by another {service}") from error
        except OSError as error:
            raise _unusable("lock", path, error) from error
        yield path
    finally:
        os.close(lock)


def make_data_directory(path: Path) -> None:
    """Makes the directory unless it is there.

    Raises:
        ConfigError: It cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable("make", path, error) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError("data_dir", f"expected a folder that can be written, got {path}")


def _unusable(verb: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError("data_dir", f"cannot {verb} {path}: {error.strerror or error}")
