"""What this process took and does not use any more."""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system.

    The C library keeps it in the places where it was, between what is still in use; after a data
    set was read that is more than a tenth of the process.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
