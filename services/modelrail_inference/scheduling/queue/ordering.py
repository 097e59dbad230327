"""Replies in the order of the requests, for models that ask for it."""

from __future__ import annotations

from collections.abc import Callable


class Ordering:
    """Holds back what is done until everything before it is done. For one thread only."""

    def __init__(self) -> None:
        self._next_ticket = 0
        self._next_out = 0
        self._done: dict[int, Callable[[], None]] = {}

    def ticket(self) -> int:
        """Returns the place of the next request."""
        self._next_ticket += 1
        return self._next_ticket - 1

    def done(self, ticket: int, send: Callable[[], None]) -> None:
        """Sends now or once all earlier places are done; every ticket is done exactly once."""
        self._done[ticket] = send
        while (ready := self._done.pop(self._next_out, None)) is not None:
            self._next_out += 1
            ready()
