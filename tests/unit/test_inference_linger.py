"""A session waits for callers that it has just answered, as long as they do ask again."""

from __future__ import annotations

import math

import pytest

from modelrail_inference.scheduling.linger import Linger

RUN_SECONDS = 0.08
LINGER_SECONDS = 0.004
"""A twentieth of the run."""


def waited(linger: Linger, *, came: int, answered: int = 4, start: float = math.inf) -> float:
    """Returns how long the first of callers waits for the others, after a batch has ended.

    Args:
        linger: What the session has learned before.
        came: Callers that come until the wait is over, the first at once.
        answered: Callers that the batch has answered.
        start: When the first has to run at the latest, counted from the end of the batch.
    """
    now = 100.0
    linger.answered(RUN_SECONDS, answered, now)
    until = linger.until(1, now + start, now)
    linger.until(came, now + start, max(now, until))
    return max(0.0, until - now)


def test_callers_that_were_just_answered_are_waited_for() -> None:
    assert waited(Linger(), came=4) == pytest.approx(LINGER_SECONDS)


def test_after_a_wait_in_vain_there_is_none_for_ever_more_batches() -> None:
    linger = Linger()
    waits = [waited(linger, came=1) > 0 for _ in range(600)]
    assert [number for number, wait in enumerate(waits) if wait] == [
        0, 2, 5, 10, 19, 36, 69, 134, 263, 520,
    ]  # fmt: skip


def test_one_wait_that_was_worth_it_makes_up_for_all_that_were_in_vain() -> None:
    linger = Linger()
    for _ in range(5):
        waited(linger, came=1)
    assert waited(linger, came=2) > 0
    assert all(waited(linger, came=2) > 0 for _ in range(10))


def test_nobody_is_waited_for_when_all_are_there() -> None:
    linger = Linger()
    linger.answered(RUN_SECONDS, 4, 100.0)
    assert linger.until(4, math.inf, 100.0) == 0.0
    assert not linger.lasts


@pytest.mark.parametrize(("start", "wait"), [(-0.1, 0.0), (0.001, 0.001), (1.0, LINGER_SECONDS)])
def test_a_request_with_a_near_deadline_waits_no_longer_than_it_can(
    start: float, wait: float
) -> None:
    linger = Linger()
    assert waited(linger, came=1, start=start) == pytest.approx(wait)
    # Only a whole wait tells whether anybody comes.
    assert (waited(linger, came=1) > 0) is (start < 1.0)


@pytest.mark.parametrize("run_seconds", [0.0, 0.003])
def test_a_wait_that_could_save_nothing_does_not_begin(run_seconds: float) -> None:
    linger = Linger()
    linger.answered(run_seconds, 4, 100.0)
    assert not linger.lasts


def batches_of(callers: int, linger: Linger | None, count: int) -> list[int]:
    """Returns the batches of callers that each ask again when they are answered.

    The first comes alone, and so runs alone; a step of the event loop lies between two callers.
    """
    now, batches = 0.0, list[int]()
    due = [0.0] + [0.01] * (callers - 1)
    while len(batches) < count:
        due.sort()
        now = max(now, due[0])
        waiting = sum(moment <= now for moment in due)
        until = 0.0 if linger is None else linger.until(waiting, math.inf, now)
        if until > now:
            now = min([until, *due[waiting : waiting + 1]])
            continue
        batches.append(waiting)
        now += RUN_SECONDS
        due = due[waiting:] + [now + 0.0001 * (number + 1) for number in range(waiting)]
        if linger is not None and waiting > 1:
            linger.answered(RUN_SECONDS, sum(moment <= now for moment in due) + waiting, now)
    return batches


@pytest.mark.parametrize("callers", [8, 32])
def test_callers_who_ask_again_and_again_get_into_one_batch(callers: int) -> None:
    assert batches_of(callers, None, 100)[-2:] == [1, callers - 1]
    assert batches_of(callers, Linger(), 100)[2:] == [callers] * 98
