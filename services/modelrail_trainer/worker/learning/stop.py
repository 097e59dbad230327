"""SIGTERM during training: the step under way is finished and kept, and then the process ends.

Whoever pauses a job, stops the service or clears the machine sends SIGTERM first, and SIGKILL some
seconds later. Of several processes the first one decides, and all of them end after the same step.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Stopped(Exception):
    """Training was stopped before its end.

    Args:
        step: Optimiser steps made.
        kept: Whether a checkpoint holds all of them.
    """

    def __init__(self, step: int, *, kept: bool) -> None:
        super().__init__(f"training was stopped after step {step}")
        self.step = step
        self.kept = kept


class StopAsked(Exception):
    """Work that can be done again is given up, because a stop was asked for."""


class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        made: Whether it was. To look costs nothing.
    """

    def __init__(self) -> None:
        self.made = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """A context in which SIGTERM makes the request. Before and after it ends the process."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._make())
        try:
            yield
        except Stopped:
            raise  # what is left to do is to say so, and nothing may cut that off
        except BaseException:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.made:  # too late for the loop to see it
            signal.raise_signal(signal.SIGTERM)

    def _make(self) -> None:
        self.made = True

    def interrupting(self, work: Callable[P, T]) -> Callable[P, T]:
        """Returns work that raises `StopAsked` in place of beginning when the request was made."""

        def begun(*args: P.args, **kwargs: P.kwargs) -> T:
            if self.made:
                raise StopAsked
            return work(*args, **kwargs)

        return begun
