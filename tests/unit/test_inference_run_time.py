"""How long the runs of one model take, by the shapes of its requests."""

from __future__ import annotations

import pytest

from modelrail_inference.scheduling.run_time import RunTimes


def taught(*runs: tuple[object, int, float]) -> RunTimes:
    learned = RunTimes()
    for key, items, seconds in runs:
        learned.add(key, items, seconds)
    return learned


def test_short_requests_and_long_ones_are_told_apart() -> None:
    learned = taught(*[(512, 1, 0.2)] * 10, (8, 1, 0.01), *[(512, 1, 0.2)] * 10)
    assert learned.of(8).seconds(1) == pytest.approx(0.01)
    assert learned.of(512).seconds(1) == pytest.approx(0.2)


def test_a_shape_that_has_not_run_takes_as_long_as_all_the_others() -> None:
    learned = taught((512, 1, 0.2), (8, 1, 0.1))
    assert 0.1 < learned.of(64).seconds(1) < 0.2
    assert learned.of(64) is learned.whole


def test_one_shape_is_learned_once() -> None:
    learned = taught(*[((), 1, 0.2)] * 3)
    assert learned.of(()) is learned.whole
    assert learned.whole.runs == 3


def test_only_so_many_shapes_are_known_and_the_one_that_ran_last_longest_ago_is_forgotten() -> None:
    learned = taught((0, 1, 1.0), *[(key, 1, 0.1) for key in range(1, 32)])
    learned.add(0, 1, 1.0)
    assert learned.of(1) is not learned.whole
    learned.add(99, 1, 0.1)
    assert learned.of(1) is learned.whole
    assert learned.of(0).seconds(1) == pytest.approx(1.0)
