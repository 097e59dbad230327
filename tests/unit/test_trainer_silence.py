"""How long a job may be silent, with a clock of the test's own and real files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelrail_trainer.execution.limits.silence import Silence
from modelrail_trainer.handover.pulse import PULSE_NAME, Pulse, last_beat


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def beat(directory: Path, nanoseconds: int) -> None:
    (directory / PULSE_NAME).touch()
    os.utime(directory / PULSE_NAME, ns=(nanoseconds, nanoseconds))


def after(silence: Silence, clock: Clock, seconds: float) -> bool:
    clock.seconds += seconds
    return silence.is_too_long()


def test_a_process_that_never_beats_is_silent_from_its_start(tmp_path: Path, clock: Clock) -> None:
    silence = Silence(tmp_path, clock, 60)
    assert not after(silence, clock, 60)
    assert after(silence, clock, 1.5)
    assert silence.seconds == 61.5


def test_every_beat_ends_the_silence(tmp_path: Path, clock: Clock) -> None:
    silence = Silence(tmp_path, clock, 60)
    for number in range(5):
        beat(tmp_path, number)
        assert not after(silence, clock, 50)
        assert silence.seconds == 0
    assert not after(silence, clock, 50)


def test_whichever_way_the_clock_of_the_file_is_set_a_beat_is_a_beat(
    tmp_path: Path, clock: Clock
) -> None:
    silence = Silence(tmp_path, clock, 60)
    for nanoseconds in (10**18, 10**18 - 3600 * 10**9, 2 * 10**18):
        beat(tmp_path, nanoseconds)
        assert not after(silence, clock, 59)
        assert silence.seconds == 0


def test_a_job_with_long_steps_may_be_silent_for_ten_of_them(tmp_path: Path, clock: Clock) -> None:
    silence = Silence(tmp_path, clock, 60)
    for number in range(3):
        beat(tmp_path, number)
        assert not after(silence, clock, 40)
    assert not after(silence, clock, 399)
    assert after(silence, clock, 2)


def test_a_limit_of_0_is_none(tmp_path: Path, clock: Clock) -> None:
    assert not after(Silence(tmp_path, clock, 0), clock, 1e9)


def test_a_beat_reaches_the_file_and_the_next_within_a_second_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / PULSE_NAME
    assert last_beat(path) is None
    pulse = Pulse(path)
    os.utime(path, ns=(5, 5))
    pulse.beat()
    assert last_beat(path) != 5
    os.utime(path, ns=(5, 5))
    pulse.beat()
    assert last_beat(path) == 5
