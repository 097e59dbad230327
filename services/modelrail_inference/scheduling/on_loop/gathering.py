"""Requests of quick models that wait a moment for others like them, on a saturated event loop.

The loop accepts calls one after the other. Between two runs of a tiny model it does so much else
that neither weights nor code are in the caches any more, and a run takes ten times as long as right
behind another; a batch of thirty takes hardly longer. So the first requests wait until those right
behind them are accepted, and all run together, on the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelrail_inference.scheduling.on_loop.crowd import MOST_REQUESTS

if TYPE_CHECKING:
    from modelrail_inference.request.feed import Feed
    from modelrail_inference.scheduling.lane import Lane
    from modelrail_inference.scheduling.queue.queued import QueuedRequest


@dataclass(frozen=True, slots=True)
class Patience:
    """How long requests wait for others.

    Attributes:
        busy_seconds: A turn of the event loop longer than that has accepted something.
        idle_seconds: When nothing was accepted for so long, nobody else comes.
        most_seconds: Longest wait.
        least_left_seconds: A request that times out sooner than that does not wait.
    """

    busy_seconds: float = 0.000_03
    idle_seconds: float = 0.000_15
    most_seconds: float = 0.005
    least_left_seconds: float = 0.02

    def allows(self, timeout: float | None, now: float) -> bool:
        """Whether a request that times out at a moment of `time.monotonic()` may wait."""
        return timeout is None or timeout - now >= self.least_left_seconds


class _Held:
    """The requests of one model that wait for others; all fit into one batch."""

    __slots__ = ("key", "requests", "rows", "since", "wanted")

    def __init__(self, first: QueuedRequest, now: float) -> None:
        self.key = first.feed.key
        self.requests: list[QueuedRequest] = []
        self.rows = 0
        self.since = now
        self.wanted = 0


class Gathering:
    """Holds requests of several models, each until its model's batch is complete.

    A model's batch is complete when as many came as are expected, when another request like the
    last does not fit, when the event loop has turned idle, or when the longest wait is over. Then
    it is handed on as soon as the loop may run it. What the loop may not run yet is handed on all
    the same when the longest wait is over, when a request comes that does not fit, or when as many
    requests are held as there may be.

    No thread knows of what is held: it belongs to the event loop alone. As long as a model's
    requests are held here, none of its requests may wait for a thread or run on one.

    Args:
        loop: The event loop.
        hand_on: Gets a model's requests when they have waited.
        on_idle: Is told when a wait ends because the event loop is idle: it would have slept.
        patience: How long requests wait.
        clock: Returns moments of `time.monotonic()`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        hand_on: Callable[[Lane, list[QueuedRequest]], None],
        on_idle: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.patience = patience or Patience()
        self.count = 0
        """Requests that are held, of all models: never more than `MOST_REQUESTS`."""
        self._loop = loop
        self._hand_on = hand_on
        self._on_idle = on_idle
        self._clock = clock
        self._held: dict[Lane, _Held] = {}
        self._watcher: asyncio.Handle | None = None
        # Not the context of the request that happens to come first.
        self._context = Context()
        self._turned_at = 0.0
        self._busy_at = 0.0
        self._due_at = 0.0
        """When something may have to be handed on though the loop is busy."""

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._held

    def fits(self, lane: Lane, feed: Feed) -> bool:
        """Whether a request of a model fits beside what is held of it."""
        held = self._held.get(lane)
        return held is None or (held.key == feed.key and lane.fits(held.rows + feed.batch_size))

    def add(self, request: QueuedRequest, now: float) -> None:
        """Holds a request that fits; hands its model's on at once if they are complete.

        Args:
            request: The request.
            now: Moment of `time.monotonic()`.
        """
        lane = request.lane
        held = self._held.get(lane)
        if held is None:
            held = self._held[lane] = _Held(request, now)
            if self._watcher is None:
                self._turned_at = self._busy_at = now
                self._due_at = now + self.patience.most_seconds
                self._watcher = self._loop.call_soon(self._watch, context=self._context)
        held.requests.append(request)
        held.rows += request.feed.batch_size
        self.count += 1
        held.wanted = lane.crowd.wanted
        if not lane.fits(held.rows + request.feed.batch_size):
            held.wanted = 0
        if self.count >= MOST_REQUESTS:
            self.end(max(self._held, key=lambda lane: len(self._held[lane].requests)))
        elif len(held.requests) >= held.wanted:
            if lane.quickness.allows(held.rows, now):
                self.end(lane)
            else:
                self._due_at = now

    def end(self, lane: Lane) -> None:
        """Hands a model's requests on now, if any are held."""
        if lane in self._held:
            self._hand_on(*self._taken(lane))

    def discard(self, request: QueuedRequest) -> bool:
        """Takes out a request whose caller has gone; returns whether it was held."""
        held = self._held.get(request.lane)
        if held is None or request not in held.requests:
            return False
        held.requests.remove(request)
        held.rows -= request.feed.batch_size
        self.count -= 1
        if not held.requests:
            del self._held[request.lane]
        return True

    def clear(self) -> list[QueuedRequest]:
        """Takes everything out and returns it."""
        return [request for lane in list(self._held) for request in self._taken(lane)[1]]

    def _taken(self, lane: Lane) -> tuple[Lane, list[QueuedRequest]]:
        held = self._held.pop(lane)
        self.count -= len(held.requests)
        return lane, held.requests

    def _watch(self) -> None:
        """Looks in every turn of the event loop whether what is held is complete."""
        now = self._clock()
        # Between two calls the loop asks for news without waiting for any, which takes no time.
        if now - self._turned_at > self.patience.busy_seconds:
            self._busy_at = now
        self._turned_at = now
        is_idle = now - self._busy_at >= self.patience.idle_seconds
        complete = None
        if is_idle or now >= self._due_at:
            complete = self._complete(now, is_idle=is_idle)
        if self._held:
            self._watcher = self._loop.call_soon(self._watch, context=self._context)
        else:
            self._watcher = None
        if complete is not None:
            if is_idle:
                self._on_idle()
            self._hand_on(*complete)

    def _complete(self, now: float, *, is_idle: bool) -> tuple[Lane, list[QueuedRequest]] | None:
        """Takes out a model's that wait for nobody any more, and notes when to look again.

        Those of one model in a turn: between two runs the loop shall send answers and see news.
        """
        complete = None
        self._due_at = float("inf")
        for lane, held in self._held.items():
            latest = held.since + self.patience.most_seconds
            is_complete = is_idle or len(held.requests) >= held.wanted
            if complete is None and (
                now >= latest or (is_complete and lane.quickness.allows(held.rows, now))
            ):
                complete = lane
            else:
                self._due_at = min(self._due_at, now if is_complete else latest)
        return None if complete is None else self._taken(complete)
