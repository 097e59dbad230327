"""The directory that one trainer owns: its database and its jobs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelrail_server.config import ConfigError


@contextmanager
def owned_data_directory(path: Path) -> Iterator[Path]:
    """Makes the directory and owns it until the context ends, or the process does.

    Job processes do not inherit the lock: one that outlives the service does not keep the next
    service out.

    Raises:
        ConfigError: Another trainer owns it: two would run every job twice.
        OSError: It cannot be made or written.
    """
    path.mkdir(parents=True, exist_ok=True)
    jobs = path / "jobs"
    jobs.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path / "trainer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError("data_dir", f"{path} is in use by another trainer") from error
        yield path
    finally:
        os.close(descriptor)
