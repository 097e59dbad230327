"""One call on its way through the service: who calls, and until when an answer is of use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_NOBODY = ""
_ROUNDED_SHARE = 0.01
_ROUNDED_SECONDS = 0.002
"""How much later a deadline is here than at the caller: gRPC rounds the time that is left up, to a
hundredth or to a millisecond."""


def _nowhere() -> str:
    return ""


@dataclass(slots=True)
class Call:
    """What accompanies a request from the transport to the session; it does not change.

    Cancellation is the cancellation of the asyncio task that awaits the answer: whoever goes away
    cancels the task, and the queue and the running session hear of it.

    Attributes:
        deadline: Moment of `time.monotonic()` after which nobody waits; None when there is none.
        identity: Name of the caller as authentication found it; empty when unknown.
        given_seconds: Time from the beginning of the call to its deadline, in seconds.
        peer: Tells the connection on which the caller reads its replies; asked only where replies
            wait to be read, as it costs something.
    """

    deadline: float | None = None
    identity: str = _NOBODY
    given_seconds: float = 0.0
    peer: Callable[[], str] = _nowhere

    @classmethod
    def within(
        cls,
        seconds: float | None,
        *,
        identity: str = _NOBODY,
        peer: Callable[[], str] = _nowhere,
    ) -> Call:
        """Returns a call whose answer is wanted within `seconds` from now; None means whenever."""
        if seconds is None:
            return cls(None, identity, 0.0, peer)
        return cls(time.monotonic() + seconds, identity, seconds, peer)

    def expired(self) -> bool:
        """Whether the deadline has passed, here or at the caller, where it comes earlier."""
        if self.deadline is None:
            return False
        ahead_seconds = max(_ROUNDED_SECONDS, _ROUNDED_SHARE * self.given_seconds)
        return time.monotonic() >= self.deadline - ahead_seconds
