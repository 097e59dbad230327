"""The pulse of a job: a file whose time changes while its process gets on with its work.

The worker beats where it has made progress, never from a thread of its own: a process that hangs
must fall silent. The service looks whether the time has changed since it looked last, so neither
clock has to be right.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

from modelrail_trainer.handover.job_file import job_file_status

PULSE_NAME = "pulse"
SHOW_AND_END = signal.SIGUSR1
"""Has the worker write what each of its threads is doing, and end."""
_LEAST_SECONDS = 1.0
"""Between two beats that reach the file; others cost no call of the system."""


class Pulse:
    """Beats into a file, which is made.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self._last_seconds = -math.inf

    def beat(self) -> None:
        """Tells that there was progress."""
        now = time.monotonic()
        if now - self._last_seconds >= _LEAST_SECONDS:
            self._last_seconds = now
            os.utime(self._file)


def last_beat(path: Path) -> int | None:
    """Returns a number that differs from beat to beat; None before the first."""
    found = job_file_status(path.parent, path.name)
    return None if found is None else found.st_mtime_ns
