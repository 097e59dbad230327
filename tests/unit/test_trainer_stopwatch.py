from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from modelrail_trainer.execution.limits.stopwatch import Stopwatch
from modelrail_trainer.jobs.job import Job, NewJob, RunPolicy
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.spec import Publication


class Clock:
    """Time that goes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def job(tmp_path: Path) -> Job:
    store = JobStore(open_database(tmp_path / "trainer.sqlite3"), max_queued_jobs=1)
    policy = RunPolicy(max_run_duration=timedelta(seconds=60))
    job = store.create(
        NewJob(b"s", Publication(model="line", alias="", description=""), policy=policy)
    )
    store.close()
    return job


def test_what_remains_is_counted_down_by_the_clock_that_only_grows(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    stopwatch = Stopwatch(job, clock)
    monkeypatch.setattr(time, "time", lambda: 1e12)  # somebody sets the wall clock
    clock.now += 20
    assert (stopwatch.seconds, stopwatch.remaining_seconds) == (20, 40)
    clock.now += 100
    assert stopwatch.remaining_seconds == 0


def test_earlier_attempts_count(job: Job) -> None:
    again = replace(job, run_seconds=50.0, earlier_run_seconds=50.0)
    assert Stopwatch(again, Clock()).remaining_seconds == 10


def test_the_age_of_an_adopted_process_counts_and_what_was_noted_of_it_counts_once(
    job: Job,
) -> None:
    adopted = replace(job, run_seconds=25.0, earlier_run_seconds=20.0)
    assert Stopwatch(adopted, Clock(), age_seconds=30.0).seconds == 50
    assert Stopwatch(adopted, Clock(), age_seconds=1.0).seconds == 25


def test_the_time_is_noted_now_and_then_and_only_where_there_is_a_limit(job: Job) -> None:
    clock = Clock()
    limited = Stopwatch(job, clock)
    free = Stopwatch(replace(job, policy=RunPolicy()), clock)
    assert _to_note(limited, free) == (False, False)
    clock.now += 10
    assert _to_note(limited, free) == (True, False)
    limited.noted(limited.seconds)
    assert _to_note(limited, free) == (False, False)


def _to_note(*stopwatches: Stopwatch) -> tuple[bool, ...]:
    return tuple(stopwatch.should_be_noted for stopwatch in stopwatches)
