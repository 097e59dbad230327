"""Leases: what they let nobody do, and which clocks they do not look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL

from modelrail.names import TrainingJobName
from modelrail_trainer.execution.leases import Watch
from modelrail_trainer.jobs.job import Job, JobError, LogLine, NewJob, StateChange
from modelrail_trainer.jobs.lease import StaleLease
from modelrail_trainer.jobs.state import JobState, Reason
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.spec import Publication

NEW = NewJob(b"specification", Publication(model="line", alias="", description=""))
CANCELLED = JobError(Reason.CANCELLED_BY_USER, "a client cancelled the job")
HOUR = timedelta(hours=1)


class WallClock:
    """A clock that somebody sets."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class Pair:
    """Two trainers on one database."""

    def __init__(self, url: URL) -> None:
        self.wall = WallClock()
        self.first, self.second = (
            JobStore(
                open_database(url),
                max_queued_jobs=50,
                trainer=name,
                lease_seconds=30,
                now=self.wall,
            )
            for name in ("first", "second")
        )

    def running(self) -> Job:
        """Returns a job that the first one runs."""
        name = self.first.create(NEW).name
        job = self.first.start_next()
        assert job is not None
        assert job.name == name
        return self.first.record(
            job.lease, [StateChange(None, JobState.RUNNING)], journal_offset=10
        )

    def registering(self) -> Job:
        job = self.running()
        self.first.record(job.lease, [StateChange(None, JobState.EXPORTING)], journal_offset=20)
        return self.first.move(job.lease, JobState.REGISTERING)

    def taken_over(self, job: Job) -> Job:
        (seen,) = (other for other in self.second.held_by_others() if other.name == job.name)
        return self.second.take_over(seen.lease, expires=seen.lease_expires)

    def history(self, name: TrainingJobName) -> list[StateChange]:
        events, _ = self.first.events_after(name, 0, limit=100)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        return [e.happening for e in events if isinstance(e.happening, StateChange)]


@pytest.fixture
def pair(postgresql_database: URL) -> Iterator[Pair]:
    pair = Pair(postgresql_database)
    yield pair
    pair.first.close()
    pair.second.close()


def test_of_several_trainers_each_job_is_started_by_one(pair: Pair) -> None:
    names = {pair.first.create(NEW).name for _ in range(20)}
    with ThreadPoolExecutor(8) as threads:
        started = list(
            threads.map(lambda i: (pair.first, pair.second)[i % 2].start_next(), range(30))
        )
    taken = [job.name for job in started if job is not None]
    assert len(taken) == len(set(taken))
    while (job := pair.second.start_next()) is not None:
        taken.append(job.name)
    assert sorted(map(str, taken)) == sorted(map(str, names))


def test_a_job_names_the_trainer_that_holds_it(pair: Pair) -> None:
    job = pair.running()
    assert (job.trainer, job.lease_epoch) == ("first", 1)
    assert job.lease_expires is not None
    job = pair.first.move(job.lease, JobState.QUEUED)
    assert (job.trainer, job.lease_epoch, job.lease_expires) == ("", 1, None)


WRITES: dict[str, Callable[[JobStore, Job], object]] = {
    "record": lambda store, job: store.record(job.lease, [LogLine("late")], journal_offset=99),
    "end": lambda store, job: store.move(job.lease, JobState.FAILED),
    "note the time": lambda store, job: store.set_run_seconds(job.lease, 5.0),
    "tell the process": lambda store, job: store.set_process(
        job.lease, "", earlier_run_seconds=0.0
    ),
    "restart": lambda store, job: store.restart(job.lease),
    "explain": lambda store, job: store.note(job.lease, CANCELLED),
    "commit": lambda store, job: store.begin_commit(job.lease),
    "publish": lambda store, job: store.set_version(job.lease, "models/line/versions/1"),
    "lose": lambda store, job: store.lose(job.lease),
    "adopt": lambda store, job: store.adopt(job.lease),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_stale_trainer_can_write_nothing(pair: Pair, write: str) -> None:
    job = pair.registering()
    taken = pair.taken_over(job)
    assert (taken.trainer, taken.lease_epoch) == ("second", 2)
    with pytest.raises(StaleLease):
        WRITES[write](pair.first, job)
    assert pair.second.get(job.name) == taken


def test_a_lost_job_is_queued_by_whoever_misses_its_trainer(pair: Pair) -> None:
    job = pair.running()
    taken = pair.taken_over(job)
    assert (taken.state, taken.trainer, taken.losses) == (JobState.QUEUED, "", 1)
    changes = pair.history(job.name)[-3:]
    assert [change.new for change in changes] == [
        *(JobState.RUNNING, JobState.LOST, JobState.QUEUED)
    ]
    missing = "trainer first has not been heard of"
    assert changes[1].error == JobError(Reason.NODE_LOST, missing)
    assert changes[2].error == taken.error
    assert taken.error == JobError(Reason.NODE_LOST, f"{missing}; the job runs again")
    with pytest.raises(StaleLease):
        pair.first.record(job.lease, [LogLine("late")], journal_offset=99)
    again = pair.second.start_next()
    assert again is not None
    assert (again.name, again.trainer, again.attempt) == (job.name, "second", 2)


def test_a_job_that_waited_for_its_restart_is_queued_as_its_trainer_would_have(pair: Pair) -> None:
    job = pair.running()
    pair.first.move(
        job.lease, JobState.RESTARTING, error=JobError(Reason.STALLED, "retry 1 of 2 follows: no")
    )
    taken = pair.taken_over(job)
    assert (taken.state, taken.losses) == (JobState.QUEUED, 0)
    assert taken.error is not None
    assert taken.error.reason is Reason.STALLED
    assert taken.error.message.startswith("retry 1 of ")


def test_a_job_that_is_lost_too_often_fails(pair: Pair) -> None:
    job = pair.running()
    for _ in range(2):
        pair.taken_over(job)
        started = pair.first.start_next()
        assert started is not None
    job = pair.taken_over(job)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.reason is Reason.NODE_LOST
    assert "3 times" in job.error.message
    assert "clone the job" in job.error.message


def test_what_was_lost_before_a_job_got_further_does_not_count(pair: Pair) -> None:
    job = pair.running()
    for _ in range(6):
        assert pair.taken_over(job).state is JobState.QUEUED
        started = pair.first.start_next()
        assert started is not None
        going_on = [StateChange(None, JobState.RUNNING)]
        pair.first.record(started.lease, going_on, journal_offset=10, got_further=True)
    assert pair.first.get(job.name).losses == 0


@pytest.mark.parametrize(
    ("wish", "end"), [("cancel", JobState.CANCELLED), ("pause", JobState.PAUSED)]
)
def test_what_a_client_wanted_of_a_lost_job_is_done(pair: Pair, wish: str, end: JobState) -> None:
    job = pair.running()
    if wish == "cancel":
        pair.second.cancel(job.name, CANCELLED)
    else:
        pair.second.pause(job.name)
    assert pair.taken_over(job).state is end
    assert pair.history(job.name)[-1].new is end


def test_a_renewed_lease_cannot_be_taken(pair: Pair) -> None:
    job = pair.running()
    (seen,) = pair.second.held_by_others()
    assert pair.first.renew([job.lease]) != [job]
    with pytest.raises(StaleLease):
        pair.second.take_over(seen.lease, expires=seen.lease_expires)
    assert pair.first.get(job.name).trainer == "first"


def test_of_two_that_miss_a_trainer_one_takes_its_job(pair: Pair) -> None:
    job = pair.registering()
    (seen,) = pair.second.held_by_others()
    pair.taken_over(job)
    with pytest.raises(StaleLease):
        pair.second.take_over(seen.lease, expires=seen.lease_expires)


def test_the_owner_hears_of_a_wish_when_it_renews(pair: Pair) -> None:
    job = pair.running()
    pair.second.cancel(job.name, CANCELLED)
    (mine,) = pair.first.renew([job.lease])
    assert (mine.lease, mine.state) == (job.lease, JobState.CANCELLING)


def test_a_stale_lease_is_not_renewed(pair: Pair) -> None:
    job = pair.registering()
    taken = pair.taken_over(job)
    assert pair.first.renew([job.lease]) == []
    assert pair.second.get(job.name) == taken


def test_the_end_of_a_lease_comes_from_the_database_and_not_from_this_machine(pair: Pair) -> None:
    job = pair.running()
    assert job.lease_expires is not None
    pair.wall.now += 1000 * HOUR
    (renewed,) = pair.first.renew([job.lease])
    assert renewed.lease_expires is not None
    assert timedelta() < renewed.lease_expires - job.lease_expires < HOUR


# SQLite


def test_on_sqlite_a_restart_takes_every_job_and_no_lease_ends(tmp_path: Path) -> None:
    wall = WallClock()
    place = tmp_path / "trainer.sqlite3"
    store = JobStore(open_database(place), max_queued_jobs=5, trainer="before", now=wall)
    store.create(NEW)
    job = store.start_next()
    assert job is not None
    assert job.lease_expires is None
    store.close()
    wall.now -= HOUR
    store = JobStore(open_database(place), max_queued_jobs=5, trainer="after", now=wall)
    assert store.held_by_others() == []
    (found,) = store.renew([])
    adopted = store.adopt(found.lease)
    assert (adopted.trainer, adopted.lease_epoch, adopted.state) == (
        *("after", 2),
        JobState.PREPARING,
    )
    with pytest.raises(StaleLease):
        store.move(job.lease, JobState.FAILED)
    store.close()


# The clocks of whoever watches


class Steady:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def other(tmp_path: Path) -> Job:
    store = JobStore(open_database(tmp_path / "trainer.sqlite3"), max_queued_jobs=5)
    store.create(NEW)
    job = store.start_next()
    assert job is not None
    store.close()
    return replace(job, lease_expires=datetime(2026, 1, 1, tzinfo=UTC))


def test_a_lease_ends_when_nothing_was_heard_for_its_length(other: Job) -> None:
    clock = Steady()
    watch = Watch(30, clock)
    assert watch.expired([other]) == []
    clock.now += 29
    assert watch.expired([other]) == []
    clock.now += 1
    assert watch.expired([other]) == [other]


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_clock_that_is_set_neither_steals_nor_keeps_a_lease(
    other: Job, jump: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Steady()
    watch = Watch(30, clock)
    watch.expired([other])
    monkeypatch.setattr(time, "time", lambda: 1e12)
    # The database's clock is set; the next renewal is by the new one.
    assert other.lease_expires is not None
    renewed = replace(other, lease_expires=other.lease_expires + jump)
    clock.now += 29
    assert watch.expired([renewed]) == []
    clock.now += 29
    assert watch.expired([renewed]) == []
    clock.now += 1
    assert watch.expired([renewed]) == [renewed]


def test_a_job_that_changed_hands_is_watched_anew(other: Job) -> None:
    clock = Steady()
    watch = Watch(30, clock)
    watch.expired([other])
    clock.now += 30
    taken = replace(other, lease_epoch=other.lease_epoch + 1)
    assert watch.expired([taken]) == []
    assert watch.expired([]) == []
    clock.now += 60
    assert watch.expired([taken]) == []
