"""The rules by which a batch is taken from the requests of one model, without threads."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest

from modelrail_inference.model.batching import DynamicBatching, QueuePolicy, TimeoutAction
from modelrail_inference.request.feed import Feed
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.queue.request_queue import RequestQueue
from modelrail_inference.scheduling.run_time import RunTimes

NOW = 1000.0
_TICKETS = itertools.count()


def request(
    *,
    rows: int = 1,
    left: float | None = None,
    level: int = 1,
    waited: float = 0.0,
    admitted_rows: int = 1,
    key: str = "",
) -> QueuedRequest:
    """Returns a request that nobody sent, whose deadline is in `left` seconds."""
    nothing = cast(Any, None)  # the queue knows neither model nor caller
    made = QueuedRequest(
        nothing,
        Feed((), (), rows, key),
        nothing,
        lambda: None,
        size_bytes=rows,
        deadline=None if left is None else NOW + left,
        level=level,
    )
    made.queued_at = NOW - waited
    made.admitted_rows = admitted_rows
    made.queued_ns = next(_TICKETS)
    return made


def queue_of(*requests: QueuedRequest, most: int = 8, **batching: Any) -> RequestQueue:
    queue = RequestQueue(DynamicBatching(**batching), most)
    for one in requests:
        queue.push(one)
    return queue


def run_times(fixed_seconds: float, item_seconds: float) -> RunTimes:
    """Returns what many runs of such times would have taught."""
    learned = RunTimes()
    for _ in range(50):
        for items in (1, 8):
            learned.add("", items, fixed_seconds + item_seconds * items)
    return learned


def test_those_who_come_later_do_not_make_an_older_request_late() -> None:
    oldest = request(left=0.35, waited=0.09)
    later = [request() for _ in range(7)]
    queue = queue_of(oldest, *later)
    assert queue.take(NOW, run_times(0.0, 0.1)) == ([oldest, *later[:2]], [])
    assert list(queue.requests()) == later[2:]


@pytest.mark.parametrize(("left", "more"), [(0.47, 2), (0.45, 1)], ids=["in time", "on the brink"])
def test_a_batch_ends_before_the_tightest_of_its_deadlines(left: float, more: int) -> None:
    """Surely: one that is expected to end right before it ends after it every second time."""
    first, tight = request(left=0.75, waited=0.2), request(left=left, waited=0.1)
    later = [request(left=10.0) for _ in range(6)]
    queue = queue_of(first, tight, *later)
    assert queue.take(NOW, run_times(0.0, 0.1)) == ([first, tight, *later[:more]], [])


def test_what_cannot_end_in_time_even_alone_runs_not_and_makes_no_batch_smaller() -> None:
    hopeless = request(left=0.05, waited=0.2)
    others = [request(left=1.0) for _ in range(8)]
    queue = queue_of(hopeless, *others)
    taken, late = queue.take(NOW, run_times(0.0, 0.1))
    assert (taken, [late_one for late_one, _ in late]) == (others, [hopeless])


def test_what_would_end_right_before_its_deadline_does_not_run() -> None:
    """Every second one would end after it."""
    near, far = request(left=1.1), request(left=1.2)
    times = run_times(1.0, 0.0)
    assert queue_of(far).take(NOW, times) == ([far], [])
    taken, ((refused, seconds),) = queue_of(near).take(NOW, times)
    assert (taken, refused) == ([], near)
    assert seconds == pytest.approx(1.0)


@pytest.mark.parametrize("on_timeout", [TimeoutAction.REJECT, TimeoutAction.DELAY])
def test_whoever_has_lost_patience_when_the_batch_is_taken_is_not_in_it(
    on_timeout: TimeoutAction,
) -> None:
    late, other = request(), request()
    late.wait_until = NOW
    queue = queue_of(late, other, policy=QueuePolicy(on_timeout=on_timeout))
    taken, refused = queue.take(NOW, run_times(0.0, 0.1), 1)
    assert taken == [other]
    if on_timeout is TimeoutAction.REJECT:
        assert refused == [(late, 0.0)]
    else:
        assert (refused, list(queue.requests())) == ([], [late])


def test_what_cannot_end_in_time_behind_those_before_it_does_not_run() -> None:
    before = [request(waited=0.3) for _ in range(3)]
    hopeless = request(left=0.35, waited=0.2)
    behind = [request() for _ in range(4)]
    queue = queue_of(*before, hopeless, *behind)
    taken, late = queue.take(NOW, run_times(0.0, 0.1))
    assert taken == before + behind
    ((refused, seconds),) = late
    assert refused is hopeless
    assert seconds == pytest.approx(0.4)


def test_a_large_request_that_would_make_another_late_runs_next() -> None:
    tight, large, small = request(left=0.35, waited=0.1), request(rows=4), request()
    queue = queue_of(tight, large, small)
    assert queue.take(NOW, run_times(0.0, 0.1)) == ([tight], [])
    assert queue.take(NOW, run_times(0.0, 0.1)) == ([large, small], [])


def test_no_batch_is_smaller_than_the_one_that_a_request_was_admitted_to() -> None:
    """Under overload the oldest are always at their end: batches would become ever smaller."""
    oldest = request(left=0.102, waited=0.9, admitted_rows=8)
    others = [request(left=1.0, admitted_rows=8) for _ in range(20)]
    queue = queue_of(oldest, *others)
    taken, late = queue.take(NOW, run_times(0.1, 0.001))
    assert taken == others[:8]
    ((refused, seconds),) = late
    assert refused is oldest
    assert seconds == pytest.approx(0.108)


@pytest.mark.parametrize(
    ("left", "wait_left", "ready_in"),
    [
        (None, None, 0.09),
        (10.0, 10.0, 0.09),
        (0.05, None, 0.05 - 0.025 - 0.005),
        (0.02, None, -0.01),
        (None, 0.03, 0.03 - 0.005),
    ],
    ids=["patient", "time enough", "near deadline", "no time to lose", "near timeout"],
)
def test_a_queue_delay_leaves_every_request_the_time_that_it_needs(
    left: float | None, wait_left: float | None, ready_in: float
) -> None:
    hasty = request(left=left)
    hasty.wait_until = None if wait_left is None else NOW + wait_left
    queue = queue_of(request(waited=0.01), hasty, preferred_sizes=(4,), max_queue_delay_seconds=0.1)
    assert queue.ready_at(run_times(0.02, 0.0)) == pytest.approx(NOW + ready_in)


def test_the_largest_preferred_size_or_a_whole_batch_is_what_is_waited_for() -> None:
    queue = queue_of(preferred_sizes=(2, 4))
    assert [queue.preferred_rows(most) for most in (1, 2, 3, 5, 8)] == [1, 2, 2, 4, 8]
    assert queue_of().preferred_rows(5) == 5


def test_a_queue_delay_gambles_with_no_deadline_while_no_run_is_known() -> None:
    queue = queue_of(request(left=0.5), preferred_sizes=(4,), max_queue_delay_seconds=0.1)
    assert queue.ready_at(RunTimes()) == 0.0


def test_rows_before_a_request_are_told_apart_by_whether_they_fit_beside_it() -> None:
    queue = queue_of(
        request(rows=2, key="long"),
        request(rows=3),
        request(level=2),
        request(rows=4, level=2, key="long"),
        most=4,
        priority_levels=2,
    )
    urgent, usual = request(key="long"), request(level=2, key="long")
    unknown = request(rows=6, level=2, key="unknown")
    asked = (urgent, usual, unknown)
    assert [queue.rows_beside(one) for one in asked] == [2, 6, 0]
    # The second of two long batches is the one that a further long request joins.
    assert [queue.batches_before(one) for one in asked] == [1, 2, 3]
    assert [queue.rows_with(one) for one in asked] == [3, 4, 6]
    assert queue.largest_batch_rows() == 4


@pytest.mark.parametrize("batching", [None, DynamicBatching()])
def test_where_each_request_runs_alone_each_is_a_batch_of_its_own_rows(
    batching: DynamicBatching | None,
) -> None:
    queue = RequestQueue(batching, 8)
    if batching is not None:  # as once a batch could not be taken apart
        queue.take_alone()
    assert queue.largest_batch_rows() == 0
    for rows in (1, 4, 5):
        queue.push(request(rows=rows))
    assert queue.batches_before(request()) == 3
    assert [queue.rows_with(request(rows=rows)) for rows in (1, 6)] == [1, 6]
    assert queue.largest_batch_rows() == 4  # 10 rows of 3 requests


def delayed(queue: RequestQueue, *requests: QueuedRequest) -> None:
    """Has requests wait longer than their policy allows, which delays them."""
    for one in requests:
        one.wait_until = NOW
        assert not queue.lose_patience(one, NOW)


def order_of(queue: RequestQueue) -> list[QueuedRequest]:
    """Takes out everything, one request after the other."""
    times = run_times(0.0, 0.0)
    taken = []
    while queue.count:
        batch, _ = queue.take(NOW, times, 1)
        taken += batch
    return taken


def test_a_delayed_request_waits_for_those_of_its_priority_or_a_higher_one_only() -> None:
    urgent, urgent_late = request(level=1), request(level=1)
    usual, usual_late = request(level=2), request(level=2)
    queue = queue_of(
        usual_late,
        urgent_late,
        usual,
        urgent,
        priority_levels=2,
        policy=QueuePolicy(on_timeout=TimeoutAction.DELAY),
    )
    delayed(queue, usual_late, urgent_late)
    assert [queue.rows_beside(request(level=level)) for level in (1, 2)] == [1, 3]
    assert order_of(queue) == [urgent, urgent_late, usual, usual_late]


def test_a_delayed_request_counts_among_those_of_its_priority() -> None:
    late, other = request(level=1), request(level=2)
    queue = queue_of(
        late, other, priority_levels=2, policy=QueuePolicy(on_timeout=TimeoutAction.DELAY)
    )
    delayed(queue, late)
    assert (queue.count_of(1), queue.count_of(2), queue.count) == (1, 1, 2)
    assert queue.discard(late)
    assert (queue.count_of(1), queue.rows, queue.size_bytes) == (0, 1, 1)


def test_a_delayed_request_keeps_the_policy_of_its_priority() -> None:
    late = request(level=1)
    queue = queue_of(
        late,
        priority_levels=2,
        level_policies={1: QueuePolicy(on_timeout=TimeoutAction.DELAY)},
    )
    delayed(queue, late)
    assert late.level == 1
