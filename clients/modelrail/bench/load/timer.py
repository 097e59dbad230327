"""A timer that is right to some ten microseconds, for an asyncio event loop on Linux.

asyncio's own timers wait in whole milliseconds (epoll), which would bunch the arrivals of a fast
open loop and add up to a millisecond to every latency.

Source: timerfd_create(2). Python offers it from 3.13 on.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

__all__ = ["PreciseTimer"]

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class PreciseTimer:
    """Calls a function at a time of `time.monotonic_ns()`. Make it inside a running event loop.

    Args:
        fire: What to call.
    """

    def __init__(self, fire: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._fire = fire
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._on_readable)

    def arm(self, at_ns: int) -> None:
        """Sets the one time to fire, in place of an earlier one; a time gone by fires at once."""
        # All zeros would disarm it.
        seconds, nanoseconds = divmod(max(at_ns, 1), 1_000_000_000)
        setting = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        self._libc.timerfd_settime(
            self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(setting), None
        )

    def close(self) -> None:
        """Never fires again."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _on_readable(self) -> None:
        # Armed anew between the wake-up and this read, there is nothing to read yet.
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        self._fire()
