"""Disk work that is repeated until a bad moment of the storage has passed.

A full disk or a busy database says nothing about a job. So it ends none: the work is tried again,
and what cannot be done before the service stops is left for the next start.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from modelrail_server.errors import DataLoss, ResourceExhausted, Unavailable
from modelrail_trainer.waiting import wait_first

T = TypeVar("T")
_log = structlog.get_logger(__name__)

# What the job store raises for its database: full, busy or failing, damaged.
DATABASE_ERRORS = (ResourceExhausted, Unavailable, DataLoss)
# Of the errors of files those that tell of the machine. The others, such as a directory where a
# file should be, do not pass by themselves.
_PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EROFS,
        errno.ESTALE,
    }
)


def passes(error: Exception) -> bool:
    """Whether the error tells of the storage, so that the same work can succeed later."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return isinstance(error, DATABASE_ERRORS)


class Backoff:
    """Growing times between attempts, each a little random so that many do not come at once.

    Args:
        first_seconds: The first time.
        max_seconds: Bound of all times.
    """

    def __init__(self, first_seconds: float, max_seconds: float) -> None:
        self._next_seconds = first_seconds
        self._max_seconds = max_seconds

    def next_seconds(self) -> float:
        """Returns the time before the next attempt."""
        seconds = self._next_seconds
        self._next_seconds = min(2 * seconds, self._max_seconds)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class Patience:
    """Repeats disk work while its errors are of the kind that passes.

    Args:
        stopping: Set when the service stops: from then on everything is tried once.
        first_seconds: Time between the first two attempts.
        max_seconds: Bound of the time between two attempts.
    """

    def __init__(
        self, stopping: asyncio.Event, *, first_seconds: float = 0.1, max_seconds: float = 10.0
    ) -> None:
        self._stopping = stopping
        self._first_seconds = first_seconds
        self._max_seconds = max_seconds

    def backoff(self) -> Backoff:
        """Returns new times between attempts."""
        return Backoff(self._first_seconds, self._max_seconds)

    async def until_done(self, work: Callable[[], Awaitable[T]]) -> T:
        """Returns what `work` returns, after as many attempts as that takes.

        Raises:
            Exception: What `work` raised, when it does not pass, or the service stops.
        """
        backoff = self.backoff()
        while True:
            try:
                return await work()
            except Exception as error:
                if not passes(error) or self._stopping.is_set():
                    raise
                _log.warning("storage failed, trying again", error=str(error))
            await wait_first(self._stopping, timeout_seconds=backoff.next_seconds())
