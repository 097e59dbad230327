"""The requests of one model that wait for a session. No locks here: the scheduler holds one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator

from modelrail_inference.model.batching import DynamicBatching, TimeoutAction
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.run_time import RunTime, RunTimes

_WAKE_SECONDS = 0.005
"""A thread that has slept until a moment waits so long for the interpreter, if others have it
(`sys.getswitchinterval`)."""
_WAIT_MARGIN = 1.25
"""A batch that waits for more requests leaves its run so many times what is expected: a run that is
known by its mean takes longer half of the time, seldom by more than that. It is more than the
margin of `RunTime.longest`, by which the batch is judged when it is taken: with less, whoever has
waited as long as it may would then be too late. It costs nobody an answer, only some wait."""

TooLate = tuple[QueuedRequest, float]
"""A request that does not run, and the time after which its answer would have come, in seconds."""


class _Group(OrderedDict[QueuedRequest, None]):
    """Waiting requests that fit into one batch, oldest first.

    A linked list: requests leave from the middle when their callers do, and thousands may leave
    while a session is busy.
    """

    rows = 0


class _Level:
    """Requests of one priority that wait behind each other, grouped by what fits together."""

    __slots__ = ("count", "groups", "rows")

    def __init__(self) -> None:
        self.groups: OrderedDict[Hashable, _Group] = OrderedDict()
        self.count = 0
        self.rows = 0

    def push(self, request: QueuedRequest) -> None:
        group = self.groups.get(request.feed.key)
        if group is None:
            group = self.groups[request.feed.key] = _Group()
        group[request] = None
        group.rows += request.feed.batch_size
        self.count += 1
        self.rows += request.feed.batch_size

    def discard(self, request: QueuedRequest) -> bool:
        group = self.groups.get(request.feed.key)
        if group is None or request not in group:
            return False
        del group[request]
        group.rows -= request.feed.batch_size
        if not group:
            del self.groups[request.feed.key]
        self.count -= 1
        self.rows -= request.feed.batch_size
        return True

    def oldest(self) -> QueuedRequest | None:
        """Returns the oldest request; a scan over groups, of which there are few."""
        if len(self.groups) == 1:
            return next(iter(next(iter(self.groups.values()))))
        heads = (next(iter(group)) for group in self.groups.values())
        return min(heads, key=lambda head: head.queued_ns, default=None)


class RequestQueue:
    """Waiting requests by priority, and the rules by which a batch is taken from them.

    A batch begins with the oldest request of the highest priority and takes whatever fits beside it
    (equal shapes but for the batch axis), from that priority first. It is taken when a preferred
    size is reached, when nothing more fits, or when the oldest request has waited for the queue
    delay, or as soon as one must not wait longer; without a delay whatever is there is taken at
    once. Because it is asked only when a session is free, a batch grows until it is taken.

    Args:
        batching: How requests are put together; None runs each alone.
        max_batch_size: Items in the largest batch; 0 for a model without batch axis.

    Attributes:
        batching: How requests are put together.
        max_rows: Items of several requests that may run together; 1 where each runs alone.
        delay_seconds: How long a batch that is not full waits for more.
        count: Requests that wait.
        rows: Their items.
        size_bytes: Their memory, in bytes.
    """

    def __init__(self, batching: DynamicBatching | None, max_batch_size: int) -> None:
        self.batching = batching or DynamicBatching()
        self._together = batching is not None and max_batch_size > 1
        self.max_rows = max_batch_size if self._together else 1
        preferred = [size for size in self.batching.preferred_sizes if size < max_batch_size]
        self._preferred = frozenset(preferred)
        self.delay_seconds = self.batching.max_queue_delay_seconds if self._together else 0.0
        # In the order in which they run: of each priority those in time, and then those that the
        # action DELAY has put behind them (Triton's `PolicyQueue`).
        self._levels = [_Level() for _ in range(2 * max(1, self.batching.priority_levels))]
        self.count = 0
        self.rows = 0
        self.size_bytes = 0

    def take_alone(self) -> None:
        """Takes each request alone from now on, and without a delay."""
        self._together = False
        self.max_rows = 1
        self.delay_seconds = 0.0

    def count_of(self, level: int) -> int:
        """Returns how many requests of a priority level wait, delayed ones among them."""
        return sum(one.count for one in self._levels[2 * level - 2 : 2 * level])

    def rows_beside(self, request: QueuedRequest) -> int:
        """Returns the items that run before a request that comes now, and fit beside it."""
        groups = (one.groups.get(request.feed.key) for one in self._before(request))
        return sum(group.rows for group in groups if group is not None)

    def rows_with(self, request: QueuedRequest) -> int:
        """Returns the items of the batch in which a request that comes now is expected to run.

        It runs together with what is there before it, up to a whole batch.
        """
        rows = request.feed.batch_size
        return max(rows, min(self.max_rows, self.rows_beside(request) + rows))

    def batches_before(self, request: QueuedRequest) -> int:
        """Returns how many batches run before that of a request that comes now."""
        before = self._before(request)
        if not self._together:
            return sum(level.count for level in before)
        beside = self.rows_beside(request)
        apart = sum(level.rows for level in before) - beside
        # It joins the last of those that fit beside it, and waits for all that do not.
        return beside // self.max_rows + -(-apart // self.max_rows)

    def largest_batch_rows(self) -> int:
        """Returns the items of the largest batch that waits; 0 for no requests.

        Where each request runs alone: of one that is as large as they are on average.
        """
        if not self._together and self.count:
            return -(-self.rows // self.count)
        return min(self.rows, self.max_rows)

    def preferred_rows(self, most_rows: int) -> int:
        """Returns the largest preferred size of a batch up to `most_rows`; them where none is.

        A whole batch is as good as a preferred one.
        """
        if most_rows == self.max_rows:
            return most_rows
        return max((size for size in self._preferred if size <= most_rows), default=most_rows)

    def next_key(self) -> Hashable:
        """Returns what the requests of the next batch have in common; None for no requests."""
        first = self._first()
        return None if first is None else first.feed.key

    def push(self, request: QueuedRequest) -> None:
        """Puts a request behind those of its level."""
        self._levels[2 * request.level - 2 + request.is_delayed].push(request)
        self.count += 1
        self.rows += request.feed.batch_size
        self.size_bytes += request.size_bytes

    def discard(self, request: QueuedRequest) -> bool:
        """Takes a request out, wherever it waits; returns whether it waited here."""
        if not self._levels[2 * request.level - 2 + request.is_delayed].discard(request):
            return False
        self.count -= 1
        self.rows -= request.feed.batch_size
        self.size_bytes -= request.size_bytes
        return True

    def lose_patience(self, request: QueuedRequest, now: float) -> bool:
        """Does what the queue policy says about a waiting request that has waited too long.

        Returns:
            Whether it was taken out. Otherwise it now waits behind all others of its priority, for
            as long as it takes, or did not wait here any more.
        """
        if not self.discard(request):
            return False
        expired = request.deadline is not None and request.deadline <= now
        if expired or self.batching.policy_of(request.level).on_timeout is TimeoutAction.REJECT:
            return True
        request.is_delayed = True
        request.wait_until = None
        self.push(request)
        return False

    def requests(self) -> Iterator[QueuedRequest]:
        """Yields everything that waits."""
        for level in self._levels:
            for group in level.groups.values():
                yield from group

    def ready_at(self, run_times: RunTimes) -> float | None:
        """Returns when a batch can be taken: a moment of `time.monotonic()`; None for no requests.

        A moment in the past means now.

        Args:
            run_times: How long batches take: none waits for others until its time is over.
        """
        if self.delay_seconds <= 0:
            return 0.0 if self.count else None
        chosen = self._choose()
        if not chosen:
            return None
        rows, closed = self._measure(chosen)
        if closed or rows in self._preferred:
            return 0.0
        delayed_until = min(request.queued_at for request in chosen) + self.delay_seconds
        return min(delayed_until, _latest_start(chosen, rows, run_times.of(chosen[0].feed.key)))

    def latest_start(self, run_times: RunTimes) -> float:
        """Returns when the next batch has to run for the sake of those that are in it now.

        A moment of `time.monotonic()`, infinite for one that can wait for ever. There has to be a
        request.
        """
        chosen = self._choose()
        rows, _ = self._measure(chosen)
        return _latest_start(chosen, rows, run_times.of(chosen[0].feed.key))

    def take(
        self, now: float, run_times: RunTimes, most_rows: int | None = None
    ) -> tuple[list[QueuedRequest], list[TooLate]]:
        """Takes the next batch out, so small that no request makes one late that was there before.

        What then does not fit into the batch runs next. A request that was admitted to a larger
        batch than it has time for, or has none even for those before it, does not run: were batches
        made smaller for it too, they would become ever smaller under overload.

        Args:
            now: Moment of `time.monotonic()`.
            run_times: How long batches take.
            most_rows: Items that the batch shall have at most; None for what the model takes.

        Returns:
            The requests of the batch, none if nothing is left; and those that will not run.
        """
        late: list[TooLate] = []
        while chosen := self._choose(most_rows):
            expired = [request for request in chosen if is_late(request, now)]
            if expired:
                late.extend((one, 0.0) for one in expired if self.lose_patience(one, now))
                continue
            chosen, hopeless = _in_time(chosen, now, run_times.of(chosen[0].feed.key))
            if not hopeless:
                break
            late.extend((one, seconds) for one, seconds in hopeless if self.discard(one))
        for request in chosen:
            self.discard(request)
        return chosen, late

    def _before(self, request: QueuedRequest) -> list[_Level]:
        """Returns the levels that run before a request that comes now."""
        return self._levels[: 2 * request.level - 1]

    def _choose(self, most_rows: int | None = None) -> list[QueuedRequest]:
        """Returns the requests that the next batch would hold; they stay in the queue."""
        first = self._first()
        if first is None:
            return []
        rows = first.feed.batch_size
        chosen = [first]
        largest = min(self.max_rows, most_rows or self.max_rows)
        if not self._together or rows >= largest:
            return chosen
        best = 1 if rows in self._preferred else 0
        for level in self._levels:
            for request in level.groups.get(first.feed.key, ()):
                if request is first:
                    continue
                if rows + request.feed.batch_size > largest:
                    # The order is kept: nothing overtakes a request for being smaller.
                    return chosen[:best] if best else chosen
                rows += request.feed.batch_size
                chosen.append(request)
                if rows == largest:
                    return chosen
                if rows in self._preferred:
                    best = len(chosen)
        # What is beyond a preferred size is the beginning of the next batch.
        return chosen[:best] if best else chosen

    def _first(self) -> QueuedRequest | None:
        return next((o for level in self._levels if (o := level.oldest()) is not None), None)

    def _measure(self, chosen: list[QueuedRequest]) -> tuple[int, bool]:
        """Returns the items of the chosen requests, and whether nothing more can come to them."""
        rows = sum(request.feed.batch_size for request in chosen)
        return rows, rows >= self.max_rows or len(chosen) < self._fitting(chosen[0])

    def _fitting(self, first: QueuedRequest) -> int:
        groups = (level.groups.get(first.feed.key, ()) for level in self._levels)
        return sum(len(group) for group in groups)


def is_late(request: QueuedRequest, now: float) -> bool:
    """Whether a request has waited too long at a moment of `time.monotonic()`."""
    timeout = request.next_timeout()
    return timeout is not None and timeout <= now


def _in_time(
    chosen: list[QueuedRequest], now: float, run_time: RunTime
) -> tuple[list[QueuedRequest], list[TooLate]]:
    """Returns the first of them that end in time together, and those that cannot."""
    most_rows = sum(request.feed.batch_size for request in chosen)
    if now + run_time.longest(most_rows) <= min(map(_deadline, chosen)):
        return chosen, []
    batch: list[QueuedRequest] = []
    hopeless: list[TooLate] = []
    rows, earliest = 0, math.inf
    for request in chosen:
        more = rows + request.feed.batch_size
        # That a trial has no time was known when it was let in.
        deadline = math.inf if request.is_trial else _deadline(request)
        judged = max(more, min(request.admitted_rows, most_rows))
        if now + run_time.longest(judged) > deadline:
            hopeless.append((request, run_time.seconds(judged)))
            continue
        if now + run_time.longest(more) > earliest:
            break  # the order is kept: what is behind it does not overtake it
        batch.append(request)
        rows = more
        earliest = min(earliest, deadline)
    return batch, hopeless


def _latest_start(chosen: list[QueuedRequest], rows: int, run_time: RunTime) -> float:
    """Returns when they have to be taken so that all are answered in time; 0 for now."""
    seconds = _WAIT_MARGIN * run_time.seconds(rows)
    latest = min(min(_deadline(request) - seconds, _patience_end(request)) for request in chosen)
    # Without any knowledge about the run, no deadline allows a wait.
    return latest - _WAKE_SECONDS if run_time.runs or latest == math.inf else 0.0


def _patience_end(request: QueuedRequest) -> float:
    return math.inf if request.wait_until is None else request.wait_until


def _deadline(request: QueuedRequest) -> float:
    return math.inf if request.deadline is None else request.deadline
