"""How many files a server may have open, and how many the programs that it starts.

Every connection, download and child process takes one. The soft limit is low for the sake of old
programs that cannot count further; a server takes what the hard limit allows.
"""

from __future__ import annotations

import contextlib
import resource

import structlog

_log = structlog.get_logger(__name__)

_soft_at_start: int | None = None


def raise_file_limit() -> None:
    """Raises the limit of this process as far as the system lets it; programs inherit it."""
    global _soft_at_start  # noqa: PLW0603 (as there is one limit, there is one such value)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _soft_at_start is None:
        _soft_at_start = soft
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        # A hard limit above what the kernel allows by now.
        _log.warning("the limit of open files stays as it is", limit=soft, error=str(error))


def restore_file_limit(pid: int) -> None:
    """Gives a program of somebody else the soft limit that this server was started with.

    Args:
        pid: The program, which this process started.

    Raises:
        ProcessLookupError: It has ended.
    """
    if _soft_at_start is None:
        return
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(PermissionError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_soft_at_start, hard))
