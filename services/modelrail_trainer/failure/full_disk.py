"""A full disk, whoever finds it: it passes, and says nothing about a job."""

from __future__ import annotations

import errno

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that the disk is full, or what one may take of it."""
    return isinstance(error, OSError) and error.errno in _FULL
