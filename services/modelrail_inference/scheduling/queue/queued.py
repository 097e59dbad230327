"""One request on its way through the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelrail_inference.request.feed import Feed

if TYPE_CHECKING:
    from modelrail_inference.scheduling.batch import Batch, Outcome
    from modelrail_inference.scheduling.lane import Lane


class QueuedRequest:
    """A checked request, from admission until its caller has the answer or has gone.

    Args:
        lane: The model.
        feed: What the session needs of it.
        future: Gets the outcome, or an error if the request never ran.
        release: Called once on the event loop when the request neither waits nor runs any more.
        size_bytes: Memory that its inputs hold until then; what its outputs are expected to take is
            added when it is let in.
        deadline: Moment of `time.monotonic()` after which nobody waits for the answer.
        level: Priority level; 1 is the highest.
    """

    __slots__ = (
        "admitted_rows",
        "batch",
        "deadline",
        "feed",
        "future",
        "is_delayed",
        "is_trial",
        "lane",
        "level",
        "queued_at",
        "queued_ns",
        "release",
        "sequence",
        "size_bytes",
        "wait_until",
    )

    def __init__(
        self,
        lane: Lane,
        feed: Feed,
        future: asyncio.Future[Outcome],
        release: Callable[[], None],
        *,
        size_bytes: int,
        deadline: float | None = None,
        level: int = 1,
    ) -> None:
        self.lane = lane
        self.feed = feed
        self.future = future
        self.release = release
        self.size_bytes = size_bytes
        self.deadline = deadline
        self.level = level
        self.admitted_rows = 0
        """Items of the batch in which it was predicted to run when it was admitted."""
        self.is_delayed = False
        """Whether the queue policy has put it behind the others of its level."""
        self.is_trial = False
        """Whether it runs to show if the guess is right that it cannot be answered in time."""
        self.queued_at = 0.0
        self.queued_ns = 0
        self.wait_until: float | None = None
        """Moment of `time.monotonic()` at which the queue policy loses patience; None for never."""
        self.batch: Batch | None = None
        """The batch that it runs in; None while it waits."""
        self.sequence = 0
        """Place in the order of replies, for models that preserve it."""

    def next_timeout(self) -> float | None:
        """Returns the next moment at which this request has waited too long; None for never."""
        if self.batch is not None or self.wait_until is None:
            return self.deadline
        return self.wait_until if self.deadline is None else min(self.deadline, self.wait_until)
