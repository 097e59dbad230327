"""Which runs the event loop does by itself."""

from __future__ import annotations

import pytest

from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.on_loop.quickness import Quickness


def taught(*runs: tuple[int, float], is_possible: bool = True) -> Quickness:
    quickness = Quickness(is_possible=is_possible, budget=LoopBudget())
    for items, cpu_seconds in runs:
        quickness.learn(items, cpu_seconds)
    return quickness


def test_a_model_has_to_show_how_quick_it_is() -> None:
    quickness = taught((1, 1e-5), (1, 1e-5))
    assert not quickness.allows(1, now=0.0)
    quickness.learn(1, 1e-5)
    assert quickness.allows(1, now=0.0)


def test_tiny_runs_may_follow_each_other() -> None:
    quickness = taught(*[(1, 5e-5)] * 3)
    quickness.budget.spent(5e-5, now=10.0)
    assert quickness.allows(1, now=10.0)


def test_quick_runs_leave_half_of_the_time() -> None:
    quickness = taught(*[(1, 5e-4)] * 3)
    assert quickness.allows(1, now=10.0)
    quickness.budget.spent(0.002, now=10.0)
    assert not quickness.allows(1, now=10.001)
    assert quickness.allows(1, now=10.002)


@pytest.mark.parametrize(("items", "allowed"), [(1, True), (50, True), (100, False)])
def test_larger_requests_are_longer_runs(items: int, allowed: bool) -> None:
    assert taught(*[(1, 1.5e-5)] * 3).allows(items, now=0.0) is allowed


def test_slow_models_and_those_that_nothing_bounds_are_left_to_threads() -> None:
    assert not taught(*[(1, 2e-3)] * 3).allows(1, now=0.0)
    assert not taught(*[(1, 1e-5)] * 3, is_possible=False).allows(1, now=0.0)


def test_a_model_that_becomes_quick_again_is_found_out() -> None:
    quickness = taught(*[(1, 2e-3)] * 3, *[(1, 1e-5)] * 50)
    assert quickness.allows(1, now=0.0)


def test_a_quick_run_is_quick_also_while_the_event_loop_may_not_do_it() -> None:
    quickness = taught(*[(1, 5e-4)] * 3)
    quickness.budget.spent(0.002, now=10.0)
    assert quickness.is_quick(1)
    assert not quickness.is_quick(2)
    assert not taught(*[(1, 5e-4)] * 2).is_quick(1)
    assert not taught(*[(1, 5e-4)] * 3, is_possible=False).is_quick(1)


def test_a_tiny_run_does_not_pay_for_what_another_model_has_taken() -> None:
    budget, now, ran = LoopBudget(), 0.0, 0.0
    for _ in range(1000):
        for seconds in (0.0009, 0.00005):
            if seconds < 0.0001 or budget.has_room(now):
                now += seconds
                ran += seconds
                budget.spent(seconds, now)
        now += 0.00005
    assert ran <= 0.6 * now


def test_what_tiny_runs_have_taken_beyond_their_half_is_owed_for_milliseconds_only() -> None:
    budget = LoopBudget()
    for turn in range(1000):
        budget.spent(0.0009, turn / 1000)
    assert not budget.has_room(1.008)
    assert budget.has_room(1.0091)
