"""What a process tells in its journal, on its way into the job's history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelrail_trainer.execution.processes import allowance
from modelrail_trainer.execution.processes.transcript import Transcript
from modelrail_trainer.handover.journal import (
    JOURNAL_NAME,
    CheckpointEvent,
    FailedEvent,
    FailureReason,
    JournalWriter,
    Metric,
    MetricsEvent,
    Phase,
    PhaseEvent,
)
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Happening, Job, JobError, LogLine, NewJob, StateChange
from modelrail_trainer.jobs.state import JobState, Reason
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.spec import Publication
from modelrail_trainer.threads import Threads

NEW = NewJob(b"specification", Publication(model="digits"))
LEFT_OUT = LogLine(
    "the job told more log lines and figures than its history keeps, which is 10 of 1 KiB; those "
    "that it tells from here on are left out"
)


@pytest.fixture(autouse=True)
def small_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "MOST_EVENTS", 10)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(open_database(tmp_path / "trainer.sqlite3"), max_queued_jobs=20)
    yield store
    store.close()


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(1)
    yield threads
    threads.close()


@pytest.fixture
def job(store: JobStore) -> Job:
    store.create(NEW)
    job = store.start_next()
    assert job is not None
    return job


@pytest.fixture
def transcript(store: JobStore, job: Job, threads: Threads, tmp_path: Path) -> Transcript:
    return Transcript(JobBook(store, threads), job, tmp_path, threads)


def told(store: JobStore, job: Job) -> list[Happening]:
    """Returns what is stored of what the process told."""
    events, _ = store.events_after(job.name, 0, limit=10_000)
    return [event.happening for event in events][2:]  # QUEUED and PREPARING are the trainer's


def report(step: int) -> MetricsEvent:
    metric = Metric(
        name="loss", value=0.5, split="validation", epoch=1, runtime="pytorch", step=step
    )
    return MetricsEvent(epoch=0, epochs=1, step=step, rows_per_second=1.0, metrics=(metric,))


async def test_the_history_of_a_job_is_bounded_and_its_last_line_says_so(
    store: JobStore, job: Job, transcript: Transcript, tmp_path: Path
) -> None:
    with JournalWriter(tmp_path / JOURNAL_NAME) as journal:
        for number in range(5):
            journal.log(f"line {number}")
        await transcript.catch_up()
        for step in range(1, 5_000):
            journal.write(report(step))
        await transcript.catch_up()
        journal.log("another")
        await transcript.catch_up()
    stored = told(store, job)
    assert stored[:5] == [LogLine(f"line {number}") for number in range(5)]
    assert stored[9:] == [LEFT_OUT]
    # The journal is read on, and tells how far training is.
    now = store.get(job.name)
    assert now.journal_offset == (tmp_path / JOURNAL_NAME).stat().st_size
    assert now.progress is not None
    assert now.progress.step == 4_999


async def test_long_lines_count_by_their_bytes(
    store: JobStore, job: Job, transcript: Transcript, tmp_path: Path
) -> None:
    with JournalWriter(tmp_path / JOURNAL_NAME) as journal:
        for _ in range(10):
            journal.log("x" * 4_000)
    await transcript.catch_up()
    assert [type(happening) for happening in told(store, job)] == [LogLine] * 3
    assert told(store, job)[-1] == LEFT_OUT


async def test_what_the_job_lives_by_is_read_however_much_it_told_before(
    store: JobStore, job: Job, transcript: Transcript, tmp_path: Path
) -> None:
    with JournalWriter(tmp_path / JOURNAL_NAME) as journal:
        for _ in range(50):
            journal.log("noise")
        journal.write(PhaseEvent(Phase.RUNNING))
        journal.write(CheckpointEvent(step=7, since=3))
        journal.write(FailedEvent(FailureReason.NAN_LOSS, "the loss is not finite"))
    await transcript.catch_up()
    assert told(store, job)[-2:] == [
        LEFT_OUT,
        StateChange(JobState.PREPARING, JobState.RUNNING, actor="worker"),
    ]
    assert store.get(job.name).error == JobError(Reason.NAN_LOSS, "the loss is not finite")
    assert transcript.complete


async def test_what_is_left_out_stays_so_after_a_restart_and_in_the_next_attempt(
    store: JobStore, job: Job, transcript: Transcript, threads: Threads, tmp_path: Path
) -> None:
    with JournalWriter(tmp_path / JOURNAL_NAME) as journal:
        for _ in range(50):
            journal.log("noise")
        await transcript.catch_up()
        journal.log("after the restart")
    book = JobBook(store, threads)
    await Transcript(book, store.get(job.name), tmp_path, threads).catch_up()
    store.move(job.lease, JobState.QUEUED)
    again = store.start_next()
    assert again is not None
    (tmp_path / JOURNAL_NAME).unlink()
    with JournalWriter(tmp_path / JOURNAL_NAME) as journal:
        journal.log("of the next attempt")
    await Transcript(book, again, tmp_path, threads).catch_up()
    lines = [one for one in told(store, job) if isinstance(one, LogLine)]
    assert lines == [LogLine("noise")] * 9 + [LEFT_OUT]


async def test_what_a_job_prints_has_a_bound_of_its_own(
    store: JobStore, job: Job, transcript: Transcript, tmp_path: Path
) -> None:
    with JournalWriter(tmp_path / JOURNAL_NAME) as journal:
        for _ in range(50):
            journal.log("noise")
    await transcript.catch_up()
    (tmp_path / "worker.log").write_text("printed\n")
    await transcript.catch_up(ended=True)
    assert told(store, job)[-1] == LogLine("printed")
