"""How long to wait before the next try."""

from __future__ import annotations

import asyncio
import random

from modelrail.client.errors import CallCancelled, ModelrailError, Unavailable

__all__ = ["Backoff", "is_transient"]

_INITIAL_SECONDS = 0.1
_MAXIMUM_SECONDS = 5.0


def is_transient(error: ModelrailError) -> bool:
    """Whether a stream that broke with this error is worth opening again.

    A server that stops or is killed ends its streams with UNAVAILABLE, or with CANCELLED when its
    grace period runs out.
    """
    return isinstance(error, Unavailable | CallCancelled)


class Backoff:
    """Capped exponential backoff with full jitter, so that many clients do not come back at once.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ ("full
        jitter").
    """

    def __init__(
        self,
        *,
        initial_seconds: float = _INITIAL_SECONDS,
        maximum_seconds: float = _MAXIMUM_SECONDS,
    ) -> None:
        self._initial_seconds = initial_seconds
        self._maximum_seconds = maximum_seconds
        self.failures = 0
        """Failures since the last success."""

    def reset(self) -> None:
        """Notes a success: the next wait is the shortest again."""
        self.failures = 0

    def next_delay(self, retry_after_seconds: float | None = None) -> float:
        """Notes a failure and returns the seconds to wait, at least what the server asked for."""
        # 2.0 ** 1024 overflows; the cap is reached long before 32 doublings.
        ceiling = min(self._maximum_seconds, self._initial_seconds * 2.0 ** min(self.failures, 32))
        self.failures += 1
        # The shortest wait is a fifth of the ceiling: a wait of nothing would only hammer.
        delay = random.uniform(ceiling / 5, ceiling)  # noqa: S311  # spreads load, guards nothing
        return max(delay, retry_after_seconds or 0.0)

    async def wait(self, error: ModelrailError | None = None) -> None:
        """Waits before the next try after `error`."""
        await asyncio.sleep(self.next_delay(error.retry_after_seconds if error else None))
