"""One call on its way through the service: who calls, and until when an answer is of use."""

from __future__ import annotations

import time
from dataclasses import dataclass

_NOBODY = ""


@dataclass(slots=True)
class Call:
    """What accompanies a request from the transport to the session; it does not change.

    Cancellation is the cancellation of the asyncio task that awaits the answer: whoever goes away
    cancels the task, and the queue and the running session hear of it.

    Attributes:
        deadline: Moment of `time.monotonic()` after which nobody waits; None when there is none.
        identity: Name of the caller as authentication found it; empty when unknown.
    """

    deadline: float | None = None
    identity: str = _NOBODY

    @classmethod
    def within(cls, seconds: float | None, *, identity: str = _NOBODY) -> Call:
        """Returns a call whose answer is wanted within `seconds` from now; None means whenever."""
        return cls(None if seconds is None else time.monotonic() + seconds, identity)

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline
