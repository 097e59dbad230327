"""Holds threads where a test wants them."""

from __future__ import annotations

import asyncio
import threading

_SECONDS = 60


class Gate:
    """A place in a thread's work that it passes when the test opens it; made on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._opened = threading.Event()

    @property
    def is_open(self) -> bool:
        """Whether everybody passes."""
        return self._opened.is_set()

    def open(self) -> None:
        """Lets everybody pass."""
        self._opened.set()

    def wait(self) -> None:
        """Waits, in a thread, until the gate is open."""
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._opened.wait(_SECONDS)
