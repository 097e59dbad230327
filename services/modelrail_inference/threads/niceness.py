"""Threads that compute give way to the one that answers."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

_STEPS = 5
"""Under overload a refusal took 600 ms with none, 79 with 1, 34 with 3 and 5 with these."""
_MOST = 19
"""Linux knows no greater niceness."""


def give_way() -> None:
    """Makes the calling thread less urgent for Linux, with all threads that it starts.

    Runs that keep every CPU busy would let the event loop wait for its turn among them: under
    overload what shall be refused at once, and health, would wait a second. Elsewhere than on Linux
    a thread has no niceness of its own, and nothing happens.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with suppress(OSError):  # a sandbox may forbid it; then all share as before
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(_MOST, now + _STEPS))
