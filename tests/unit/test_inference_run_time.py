"""How long the runs of one model take, by the shapes of its requests."""

from __future__ import annotations

import random

import pytest

from modelrail_inference.scheduling.run_time import RunTime, RunTimes


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


def test_a_guess_is_tried_again_after_refusals_for_ten_times_as_long_as_the_trial_takes() -> None:
    learned = taught((8, 1, 0.3), (512, 1, 0.3))
    assert [learned.tries(8, now, seconds=0.02) for now in (50.0, 50.19, 50.21)] == [
        False,
        False,
        True,
    ]
    assert [learned.tries(8, now, seconds=0.02) for now in (50.22, 50.4, 50.42)] == [
        False,
        False,
        True,
    ]


def test_after_a_trial_that_did_not_stop_in_time_the_next_waits_ten_times_as_long() -> None:
    learned = taught((8, 1, 0.3))
    assert not learned.tries(8, 50.0, seconds=0.005)
    assert learned.tries(8, 50.06, seconds=0.005)
    learned.add(8, 1, 0.3)
    learned.of(8).tried(0.3)
    assert not learned.tries(8, 50.4, seconds=0.005)
    assert not learned.tries(8, 53.3, seconds=0.005)
    assert learned.tries(8, 53.5, seconds=0.005)


def test_refusals_before_the_last_run_make_no_guess_doubtful() -> None:
    learned = taught((8, 1, 0.3))
    assert not learned.tries(8, 50.0, seconds=0.02)
    learned.add(8, 1, 0.3)
    assert not learned.tries(8, 99.0, seconds=0.02)


def test_a_shape_of_which_nothing_is_known_is_tried_at_once() -> None:
    learned = taught((512, 1, 0.2), (256, 1, 0.1))
    assert learned.tries(8, 50.0, seconds=0.02)


def test_a_guess_that_was_wrong_is_forgotten() -> None:
    learned = taught((8, 1, 2.0), (512, 1, 2.0))
    learned.forget(8)
    learned.add(8, 1, 0.01)
    assert learned.of(8).seconds(1) == pytest.approx(0.01)
    learned.forget("unknown")
    assert learned.whole.seconds(1) > 0.5


def test_what_was_learned_of_other_sizes_stays_while_one_size_comes() -> None:
    """Rounding must not take its place: it would refuse, or let in, what nobody has ever seen."""
    chance = random.Random(1)  # noqa: S311
    time = RunTime()
    for size in (8, *[32] * 480):
        time.add(size, (0.002 + 0.001 * size) * chance.uniform(0.9, 1.1))
        if time.runs > 1:
            assert time.has_varied()
            assert time.seconds(8) == pytest.approx(0.010, rel=0.5)
            assert time.seconds(64) == pytest.approx(0.066, rel=0.5)
