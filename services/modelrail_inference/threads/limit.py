"""Threads that may not be had: a container, a user and a machine each allow only so many."""

from __future__ import annotations

import errno
import threading


class ThreadLimitReached(OSError):
    """No thread could be started. Nothing else is wrong, and later there may be one."""


def start_thread(thread: threading.Thread) -> None:
    """Starts a thread.

    Raises:
        ThreadLimitReached: The system allows no more.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise ThreadLimitReached(
            errno.EAGAIN, "no thread could be started: the limit of this system is reached"
        ) from error
