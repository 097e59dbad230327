"""Whether a model's runs are so short that the event loop does them by itself."""

from __future__ import annotations

from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.run_time import RunTime

_TINY_SECONDS = 0.0001
"""Handing a request to a thread and its answer back costs about as much as a run of this length."""
_QUICK_SECONDS = 0.001
"""Longest run that the event loop does, in seconds."""
_TRIALS = 3
"""Runs on a thread by which a model shows how quick it is."""


class Quickness:
    """Learns from a model's runs how quick they are.

    It knows the processor time of the thread that ran them, not the time on the clock: that holds
    the waits of the thread for the interpreter and for a processor, which a run on the event loop
    does not have, and which would keep a busy server from finding out.

    Args:
        is_possible: Whether the model's runs may happen on the event loop at all.
        budget: What runs may take of the event loop; all of its models share one.
    """

    __slots__ = ("_time", "budget", "is_possible")

    def __init__(self, *, is_possible: bool, budget: LoopBudget) -> None:
        self.is_possible = is_possible
        self.budget = budget
        self._time = RunTime()

    def learn(self, items: int, cpu_seconds: float) -> None:
        """Learns from one run, wherever it was."""
        self._time.add(items, cpu_seconds)

    def allows(self, items: int, now: float) -> bool:
        """Whether a run of so many items may happen on the event loop at a moment.

        Those that take no longer than the way to a thread always; others while all runs there leave
        the event loop at least half of its time. What then waits for a thread gets into one batch.

        Args:
            items: Items of the run.
            now: Moment of `time.monotonic()`.
        """
        if not self.is_possible or self._time.runs < _TRIALS:
            return False
        seconds = self._time.seconds(items)
        return seconds < _TINY_SECONDS or (seconds < _QUICK_SECONDS and self.budget.has_room(now))

    def is_quick(self, items: int) -> bool:
        """Whether the event loop may do a run of so many items, be it not right now."""
        return (
            self.is_possible
            and self._time.runs >= _TRIALS
            and self._time.seconds(items) < _QUICK_SECONDS
        )
