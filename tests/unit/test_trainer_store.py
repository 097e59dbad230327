from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Table, create_engine, func, select, update

from modelrail.names import TrainingJobName
from modelrail_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    ServiceError,
)
from modelrail_trainer.execution.processes.process import ProcessIdentity
from modelrail_trainer.handover.data_summary import DataSummary, PartSummary
from modelrail_trainer.handover.evaluation import Evaluation
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.isolation.layer import Layer, LayerName
from modelrail_trainer.jobs.job import (
    Happening,
    Job,
    JobError,
    LogLine,
    MetricReport,
    NewJob,
    Progress,
    RunPolicy,
    StateChange,
)
from modelrail_trainer.jobs.lease import StaleLease
from modelrail_trainer.jobs.state import (
    IDLE,
    STOPPING,
    TERMINAL,
    IllegalTransition,
    JobState,
    Reason,
)
from modelrail_trainer.jobs.storage import schema
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.migrations.versions import r0001_first_tables
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.protocol import replies
from modelrail_trainer.spec import Publication

NEW = NewJob(b"specification", Publication(model="digits", alias="production", description="d"))
CANCELLED = JobError(Reason.CANCELLED_BY_USER, "a client cancelled the job")


@pytest.fixture
def store(database_place: Path | URL) -> Iterator[JobStore]:
    store = JobStore(open_database(database_place), max_queued_jobs=20)
    yield store
    store.close()


def _history(store: JobStore, name: TrainingJobName) -> list[Happening]:
    events, _ = store.events_after(name, 0, limit=1000)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [event.happening for event in events]


def _states(store: JobStore, name: TrainingJobName) -> list[JobState]:
    return [h.new for h in _history(store, name) if isinstance(h, StateChange)]


def _start(store: JobStore, name: TrainingJobName) -> Job:
    job = store.start_next()
    assert job is not None
    assert job.name == name
    return job


def _record(
    store: JobStore, name: TrainingJobName, happenings: list[Happening], **more: Any
) -> Job:
    return store.record(store.get(name).lease, happenings, **more)


def _running(store: JobStore, new: NewJob = NEW) -> TrainingJobName:
    name = store.create(new).name
    _start(store, name)
    _record(store, name, [StateChange(None, JobState.RUNNING)], journal_offset=10)
    return name


def test_migrations_make_the_tables_that_the_code_uses(database_place: Path | URL) -> None:
    database = open_database(database_place)
    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    database.close()
    assert differences == []


def test_jobs_of_an_older_trainer_are_there_after_its_update(
    tmp_path: Path,
) -> None:
    older = create_engine(f"sqlite:///{tmp_path}/trainer.sqlite3")
    with older.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        r0001_first_tables.upgrade()
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, uid, specification, model, alias, description, state, metrics,"
            " model_version, attempt, losses, create_time, journal_offset, committing,"
            " last_sequence) VALUES ('old', 'u', x'00', 'm', '', '', 'QUEUED', '[]', '', 0, 0, 0,"
            " 0, 0, 0), ('run', 'v', x'00', 'm', '', '', 'RUNNING', '[]', '', 1, 0, 0, 0, 0, 0)"
        )
        connection.exec_driver_sql(
            "UPDATE jobs SET process_pid = 12, process_start_ticks = 3456, process_boot_id = 'b-1'"
            " WHERE id = 'run'"
        )
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0001')")
    older.dispose()
    store = JobStore(open_database(tmp_path / "trainer.sqlite3"), max_queued_jobs=20)
    job = store.next_queued()
    assert job is not None
    assert (str(job.name), job.policy, job.process) == ("trainingJobs/old", RunPolicy(), "")
    assert (job.isolation, job.evaluation, job.data_summary, job.trainer) == ((), "", "", "")
    process = ProcessIdentity.from_handle(store.get(TrainingJobName("run")).process)
    assert process == ProcessIdentity(12, 3456, "b-1")
    store.close()


def test_the_next_job_is_that_with_the_highest_priority_and_of_equals_the_oldest(
    store: JobStore,
) -> None:
    priorities = [0, -5, 7, 0, 7]
    names = [
        store.create(replace(NEW, policy=RunPolicy(priority=priority))).name
        for priority in priorities
    ]
    order = []
    while (job := store.next_queued()) is not None:
        order.append(names.index(job.name))
        _start(store, job.name)
    assert order == [2, 4, 0, 3, 1]
    assert [job.name for job in store.page(size=10).jobs] == names[::-1]


def test_the_order_of_the_queue_is_read_from_an_index(tmp_path: Path) -> None:
    database = open_database(tmp_path / "trainer.sqlite3")
    with database.read() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE state = 'QUEUED' "
            "ORDER BY priority DESC, number LIMIT 1"
        ).all()
    database.close()
    assert [row.detail for row in plan] == ["SEARCH jobs USING INDEX jobs_by_priority (state=?)"]


def test_a_created_job_is_queued_and_its_first_event_says_so(store: JobStore) -> None:
    job = store.create(NEW)
    assert job.state is JobState.QUEUED
    assert job.specification == NEW.specification
    assert job.publication == NEW.publication
    assert _history(store, job.name) == [StateChange(None, JobState.QUEUED)]


def test_ids_sort_by_the_time_of_creation(store: JobStore) -> None:
    names = [store.create(NEW).name for _ in range(3)]
    stamps = [name.training_job.rsplit("-", 1)[0] for name in names]
    assert stamps == sorted(stamps)
    assert len(set(names)) == 3


def test_jobs_survive_a_restart(database_place: Path | URL) -> None:
    first = JobStore(open_database(database_place), max_queued_jobs=20)
    job = first.create(NEW)
    first.close()
    second = JobStore(open_database(database_place), max_queued_jobs=20)
    assert second.get(job.name) == job
    second.close()


def test_a_repeated_request_returns_the_first_job(store: JobStore) -> None:
    request_id = str(uuid.uuid4())
    first = store.create(NEW, request_id=request_id)
    assert store.create(NEW, request_id=request_id) == first
    assert len(store.page(size=10).jobs) == 1


def test_a_request_id_with_another_body_is_refused(store: JobStore) -> None:
    request_id = str(uuid.uuid4())
    store.create(NEW, request_id=request_id)
    with pytest.raises(AlreadyExists, match="request_id"):
        store.create(replace(NEW, specification=b"another"), request_id=request_id)
    with pytest.raises(AlreadyExists, match="request_id"):
        store.create(replace(NEW, policy=RunPolicy(priority=1)), request_id=request_id)
    assert len(store.page(size=10).jobs) == 1


def test_a_full_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    database = open_database(tmp_path / "trainer.sqlite3")
    store = JobStore(database, max_queued_jobs=20)
    job = store.create(NEW)
    # The limit belongs to a connection; the pool hands the one that was given back out again.
    # It cannot be less than what is there.
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(ResourceExhausted) as caught:
        store.create(replace(NEW, specification=b"s" * 100_000))
    assert caught.value.reason == "STORAGE_FULL"
    with pytest.raises(ResourceExhausted) as caught:
        store.cancel(job.name, JobError(Reason.CANCELLED_BY_USER, "x" * 100_000))
    assert caught.value.reason == "STORAGE_FULL"
    assert store.page(size=10).jobs == [job]
    assert _states(store, job.name) == [JobState.QUEUED]
    store.close()


def test_many_callers_with_one_request_id_make_one_job(store: JobStore) -> None:
    request_id = str(uuid.uuid4())
    with ThreadPoolExecutor(8) as threads:
        jobs = list(threads.map(lambda _: store.create(NEW, request_id=request_id), range(16)))
    assert len({job.name for job in jobs}) == 1


def test_a_clone_is_a_new_job_with_the_same_work_and_its_parent_named(store: JobStore) -> None:
    policy = RunPolicy(5, timedelta(hours=1), datetime(2026, 1, 1, tzinfo=UTC), max_retries=2)
    parent = store.create(replace(NEW, policy=policy))
    store.cancel(parent.name, CANCELLED)
    clone = store.clone(parent.name, actor="alice")
    assert clone.name != parent.name
    assert (clone.state, clone.parent) == (JobState.QUEUED, parent.name)
    assert clone.specification == parent.specification
    assert clone.publication == parent.publication
    assert clone.policy == replace(policy, expire_time=None)
    assert _actors(store, clone.name) == ["alice"]
    assert store.get(parent.name).parent is None


def test_a_repeated_request_for_a_clone_makes_one(store: JobStore) -> None:
    first, second = store.create(NEW).name, store.create(NEW).name
    request_id = str(uuid.uuid4())
    clone = store.clone(first, request_id=request_id)
    assert store.clone(first, request_id=request_id) == clone
    with pytest.raises(AlreadyExists, match="request_id"):
        store.clone(second, request_id=request_id)
    with pytest.raises(AlreadyExists, match="request_id"):
        store.create(NEW, request_id=request_id)
    with pytest.raises(NotFound):
        store.clone(TrainingJobName("nobody"))
    assert len(store.page(size=10).jobs) == 3


def test_a_full_queue_refuses_and_keeps_nothing(store: JobStore) -> None:
    for _ in range(20):
        store.create(NEW)
    with pytest.raises(ResourceExhausted, match="20"):
        store.create(NEW)
    assert store.count_by_state()[JobState.QUEUED] == 20


def test_pages_list_the_newest_first(store: JobStore) -> None:
    names = [store.create(NEW).name for _ in range(5)]
    first = store.page(size=3)
    rest = store.page(size=3, before_number=first.next_number)
    assert [job.name for job in [*first.jobs, *rest.jobs]] == names[::-1]
    assert rest.next_number is None


def test_a_cancelled_queued_job_ends_at_once(store: JobStore) -> None:
    name = store.create(NEW).name
    assert store.cancel(name, CANCELLED).state is JobState.CANCELLED
    assert _states(store, name) == [JobState.QUEUED, JobState.CANCELLING, JobState.CANCELLED]
    assert store.get(name).end_time is not None


def _actors(store: JobStore, name: TrainingJobName) -> list[str]:
    return [h.actor for h in _history(store, name) if isinstance(h, StateChange)]


def test_every_change_of_state_tells_who_brought_it_about(store: JobStore) -> None:
    name = store.create(NEW, actor="alice").name
    _start(store, name)
    _record(store, name, [StateChange(None, JobState.RUNNING)], journal_offset=10)
    store.cancel(name, CANCELLED, actor="bob")
    store.move(store.get(name).lease, JobState.CANCELLED, error=CANCELLED)
    assert _states(store, name) == [
        *(JobState.QUEUED, JobState.PREPARING, JobState.RUNNING),
        *(JobState.CANCELLING, JobState.CANCELLED),
    ]
    assert _actors(store, name) == ["alice", "trainer", "worker", "bob", "trainer"]


def test_events_of_trainers_that_noted_no_actor_read_as_the_trainers(tmp_path: Path) -> None:
    database = open_database(tmp_path / "trainer.sqlite3")
    store = JobStore(database, max_queued_jobs=20)
    name = store.create(NEW, actor="alice").name
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE events SET payload = json_remove(payload, '$.actor')")
    assert _actors(store, name) == ["trainer"]
    store.close()


def test_cancelling_twice_tells_it_once(store: JobStore) -> None:
    name = _running(store)
    store.cancel(name, CANCELLED)
    assert store.cancel(name, CANCELLED).state is JobState.CANCELLING
    assert _states(store, name).count(JobState.CANCELLING) == 1


@pytest.mark.parametrize("end", sorted(TERMINAL - {JobState.SUCCEEDED}))
def test_an_ended_job_cannot_be_cancelled(store: JobStore, end: JobState) -> None:
    name = store.create(NEW).name
    if end is JobState.CANCELLED:
        store.cancel(name, CANCELLED)
    else:
        store.move(store.get(name).lease, end)
    with pytest.raises(FailedPrecondition, match=end.value):
        store.cancel(name, CANCELLED)


def test_a_queued_job_is_paused_at_once_and_takes_no_place(store: JobStore) -> None:
    name = store.create(NEW).name
    assert store.pause(name, actor="alice").state is JobState.PAUSED
    assert store.next_queued() is None
    assert store.start_next() is None
    assert store.resume(name, actor="bob").state is JobState.QUEUED
    assert _states(store, name) == [JobState.QUEUED, JobState.PAUSED, JobState.QUEUED]
    assert _actors(store, name) == ["trainer", "alice", "bob"]


def test_a_job_with_a_process_is_paused_when_the_process_is_gone(store: JobStore) -> None:
    name = _running(store)
    assert store.pause(name).state is JobState.PAUSING
    _record(store, name, [StateChange(None, JobState.EXPORTING)], journal_offset=20)
    assert store.get(name).state is JobState.PAUSING
    with pytest.raises(FailedPrecondition) as caught:
        store.resume(name)
    assert caught.value.reason == "JOB_PAUSING"
    job = store.move(store.get(name).lease, JobState.PAUSED)
    assert (job.state, job.progress, job.process) == (JobState.PAUSED, None, "")


def test_pausing_and_resuming_twice_tells_it_once(store: JobStore) -> None:
    name = _running(store)
    assert store.resume(name).state is JobState.RUNNING
    store.pause(name)
    assert store.pause(name).state is JobState.PAUSING
    store.move(store.get(name).lease, JobState.PAUSED)
    assert store.pause(name).state is JobState.PAUSED
    store.resume(name)
    assert store.resume(name).state is JobState.QUEUED
    assert _states(store, name)[3:] == [JobState.PAUSING, JobState.PAUSED, JobState.QUEUED]


def test_a_paused_job_is_cancelled_at_once(store: JobStore) -> None:
    name = store.create(NEW).name
    store.pause(name)
    assert store.cancel(name, CANCELLED).state is JobState.CANCELLED
    assert store.get(name).end_time is not None


def test_a_job_that_is_being_paused_can_be_cancelled(store: JobStore) -> None:
    name = _running(store)
    store.pause(name)
    assert store.cancel(name, CANCELLED).state is JobState.CANCELLING


@pytest.mark.parametrize("state", ["CANCELLING", "REGISTERING", *sorted(TERMINAL)])
def test_a_job_on_its_way_out_cannot_be_paused(store: JobStore, state: str) -> None:
    name = _running(store)
    if state in {JobState.CANCELLING, JobState.CANCELLED}:
        store.cancel(name, CANCELLED)
    if state in {JobState.REGISTERING, JobState.SUCCEEDED}:
        _record(store, name, [StateChange(None, JobState.EXPORTING)], journal_offset=20)
        store.move(store.get(name).lease, JobState.REGISTERING)
    if store.get(name).state != state:
        store.move(store.get(name).lease, JobState(state))
    with pytest.raises(FailedPrecondition, match=state):
        store.pause(name)
    if state != JobState.REGISTERING:
        with pytest.raises(FailedPrecondition, match=state):
            store.resume(name)
    assert store.get(name).state == state


def test_what_the_process_said_before_it_was_paused_is_kept(store: JobStore) -> None:
    name = _running(store)
    error = JobError(Reason.NAN_LOSS, "loss is nan")
    _record(store, name, [], journal_offset=20, failure=error)
    assert store.pause(name).error == error


def test_a_paused_job_comes_back_only_where_there_is_room(store: JobStore) -> None:
    name = store.create(NEW).name
    store.pause(name)
    for _ in range(20):
        store.create(NEW)
    with pytest.raises(ResourceExhausted, match="20"):
        store.resume(name)
    assert store.get(name).state is JobState.PAUSED


def test_a_job_that_restarts_counts_its_retries_and_is_queued_again(store: JobStore) -> None:
    name = _running(store, replace(NEW, policy=RunPolicy(max_retries=3)))
    died = JobError(Reason.PROCESS_DIED, "killed")
    job = store.move(store.get(name).lease, JobState.RESTARTING, error=died)
    assert (job.retries, job.error) == (1, died)
    job = store.restart(store.get(name).lease)
    assert (job.state, job.retries) == (JobState.QUEUED, 1)
    assert job.error == JobError(Reason.PROCESS_DIED, "retry 1 of 3")


def test_retries_are_counted_for_each_reason(store: JobStore) -> None:
    name = store.create(NEW).name
    reasons = [Reason.STALLED, Reason.PROCESS_DIED, Reason.STALLED]
    for reason in reasons:
        lease = _start(store, name).lease
        store.move(lease, JobState.RESTARTING, error=JobError(reason, "it failed"))
        store.restart(lease)
    job = store.get(name)
    assert job.retries == 3
    assert job.retries_by_reason == {Reason.STALLED: 2, Reason.PROCESS_DIED: 1}


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_a_job_that_waits_for_its_restart_obeys_at_once(store: JobStore, wish: str) -> None:
    name = _running(store)
    store.move(store.get(name).lease, JobState.RESTARTING)
    job = store.pause(name) if wish == "pause" else store.cancel(name, CANCELLED)
    assert job.state is {"pause": JobState.PAUSED, "cancel": JobState.CANCELLED}[wish]
    assert store.restart(store.get(name).lease) == job


def test_a_job_that_is_being_published_cannot_be_cancelled(store: JobStore) -> None:
    name = _running(store)
    _record(store, name, [StateChange(None, JobState.EXPORTING)], journal_offset=20)
    store.move(store.get(name).lease, JobState.REGISTERING)
    store.begin_commit(store.get(name).lease)
    with pytest.raises(FailedPrecondition, match="publish"):
        store.cancel(name, CANCELLED)


def test_a_cancelled_job_is_not_published(store: JobStore) -> None:
    name = _running(store)
    _record(store, name, [StateChange(None, JobState.EXPORTING)], journal_offset=20)
    store.move(store.get(name).lease, JobState.REGISTERING)
    store.cancel(name, CANCELLED)
    with pytest.raises(IllegalTransition):
        store.begin_commit(store.get(name).lease)


def test_what_a_process_writes_is_stored_with_its_position(store: JobStore) -> None:
    name = _running(store)
    loss = Metric(name="loss", value=0.5, split="train", epoch=1, runtime="pytorch")
    report = MetricReport(Progress(1, 10, 40, 900.0), (loss,))
    job = _record(store, name, [report, LogLine("hello")], journal_offset=99)
    assert job.journal_offset == 99
    assert job.progress == report.progress
    assert _history(store, name)[-2:] == [report, LogLine("hello")]


def test_an_earlier_attempt_cannot_write_any_more(store: JobStore) -> None:
    name = _running(store)
    first = store.get(name).lease
    store.move(first, JobState.QUEUED, lost=True)
    _start(store, name)
    before = store.get(name)
    with pytest.raises(StaleLease):
        store.record(first, [LogLine("late")], journal_offset=50)
    assert store.get(name) == before


def test_an_impossible_phase_changes_nothing(store: JobStore) -> None:
    name = store.create(NEW).name
    _start(store, name)
    before = store.get(name)
    with pytest.raises(IllegalTransition):
        _record(
            store,
            name,
            [LogLine("x"), StateChange(None, JobState.EXPORTING)],
            journal_offset=50,
        )
    assert store.get(name) == before


def test_a_process_that_is_being_stopped_does_not_undo_the_cancellation(store: JobStore) -> None:
    name = _running(store)
    store.cancel(name, CANCELLED)
    _record(store, name, [StateChange(None, JobState.EXPORTING)], journal_offset=50)
    assert store.get(name).state is JobState.CANCELLING


def test_a_requeued_job_starts_from_the_beginning(store: JobStore) -> None:
    name = _running(store)
    store.set_process(store.get(name).lease, "1234:99:boot", earlier_run_seconds=1.5)
    store.move(store.get(name).lease, JobState.QUEUED, lost=True)
    job = _start(store, name)
    assert (job.attempt, job.losses, job.journal_offset, job.process) == (2, 1, 0, "")


def test_the_run_time_of_earlier_attempts_is_kept_apart(store: JobStore) -> None:
    name = _running(store)
    store.set_run_seconds(store.get(name).lease, 7.5)
    job = store.get(name)
    assert (job.run_seconds, job.earlier_run_seconds) == (7.5, 0)
    store.move(store.get(name).lease, JobState.QUEUED)
    job = _start(store, name)
    assert (job.run_seconds, job.earlier_run_seconds) == (7.5, 7.5)


def test_the_first_to_expire_is_found_among_the_jobs_that_never_started(store: JobStore) -> None:
    assert store.next_expiring() is None
    store.create(NEW)
    dawn = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    started, late, early = (
        store.create(
            replace(NEW, policy=RunPolicy(priority, expire_time=dawn + timedelta(hours=h)))
        ).name
        for h, priority in ((0, 1), (2, 0), (1, 0))
    )
    _start(store, started)
    store.move(store.get(started).lease, JobState.QUEUED)
    job = store.next_expiring()
    assert job is not None
    assert (job.name, job.policy.expire_time) == (early, dawn + timedelta(hours=1))
    store.cancel(early, CANCELLED)
    job = store.next_expiring()
    assert job is not None
    assert job.name == late


def test_events_resume_after_a_position(store: JobStore) -> None:
    name = _running(store)
    events, complete = store.events_after(name, 2, limit=10)
    assert [event.sequence for event in events] == [3]
    assert not complete
    store.move(store.get(name).lease, JobState.FAILED)
    events, complete = store.events_after(name, 3, limit=10)
    assert [event.sequence for event in events] == [4]
    assert complete


def test_a_position_beyond_the_last_event_is_out_of_range(store: JobStore) -> None:
    name = store.create(NEW).name
    with pytest.raises(OutOfRange, match="at most 1"):
        store.events_after(name, 2, limit=10)


def _rows(store: JobStore, table: Table) -> int:
    with store._database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_deleted_job_is_gone_for_whoever_looks_and_then_from_every_table(
    store: JobStore,
) -> None:
    request_id = str(uuid.uuid4())
    name = store.create(NEW, request_id=request_id).name
    other = store.create(NEW).name
    store.cancel(name, CANCELLED)
    assert store.delete(name).state is JobState.CANCELLED
    for look in (
        lambda: store.get(name),
        lambda: store.events_after(name, 0, limit=1),
        lambda: store.clone(name),
        lambda: store.cancel(name, CANCELLED),
        lambda: store.delete(name),
    ):
        with pytest.raises(NotFound, match=str(name)):
            look()
    assert [job.name for job in store.page(size=10).jobs] == [other]
    assert store.in_states(TERMINAL) == []
    assert store.count_by_state()[JobState.CANCELLED] == 0
    assert store.deleted() == [name]
    assert store.unknown([name, other, TrainingJobName("nobody")]) == [TrainingJobName("nobody")]
    # The wish that made it is forgotten with it.
    again = store.create(NEW, request_id=request_id).name
    assert again != name
    assert store.purge(name)
    assert store.purge(name)
    assert store.deleted() == []
    assert (_rows(store, schema.jobs), _rows(store, schema.requests)) == (2, 1)
    assert _rows(store, schema.events) == 2
    assert store.unknown([name]) == [name]


@pytest.mark.parametrize("state", sorted(set(JobState) - TERMINAL))
def test_a_job_that_has_not_ended_is_not_deleted(store: JobStore, state: JobState) -> None:
    name = store.create(NEW).name
    with store._database.write() as connection:
        connection.execute(update(schema.jobs).values(state=state.value))
    with pytest.raises(FailedPrecondition, match="cancel it first, or wait for its end") as refused:
        store.delete(name)
    assert refused.value.reason == "JOB_NOT_ENDED"
    assert store.get(name).state is state
    store.purge(name)
    assert _history(store, name)


def test_what_is_left_of_a_deleted_job_goes_in_portions(store: JobStore) -> None:
    other = _running(store)
    name = _running(store)
    _record(store, name, [LogLine(str(n)) for n in range(2500)], journal_offset=11)
    store.move(store.get(name).lease, JobState.FAILED)
    store.delete(name)
    before = _rows(store, schema.events)
    assert not store.purge(name)
    assert _rows(store, schema.events) == before - 1000
    assert [store.purge(name), store.purge(name)] == [False, True]
    assert _rows(store, schema.events) == len(_history(store, other))


def test_of_the_ended_jobs_those_that_ended_last_are_kept(database_place: Path | URL) -> None:
    now = [datetime(2026, 1, 2, tzinfo=UTC)]
    store = JobStore(open_database(database_place), max_queued_jobs=200, now=lambda: now[0])
    names = [store.create(NEW).name for _ in range(105)]
    for name in [*names[3:], names[1], names[0]]:
        now[0] += timedelta(seconds=1)
        store.cancel(name, CANCELLED)
    assert store.delete_surplus(104) == []
    assert store.delete_surplus(3) == [*names[-2:2:-1]][:100]
    assert store.delete_surplus(3) == [names[3]]
    assert store.delete_surplus(3) == []
    assert [job.name for job in store.page(size=200).jobs] == [names[i] for i in (104, 2, 1, 0)]
    store.close()


def test_an_unknown_job_is_not_found(store: JobStore) -> None:
    name = TrainingJobName("nobody")
    with pytest.raises(NotFound):
        store.get(name)
    with pytest.raises(NotFound):
        store.cancel(name, CANCELLED)
    with pytest.raises(NotFound):
        store.events_after(name, 0, limit=1)


STEPS = ("start", "running", "exporting", "commit", "cancel", "pause", "resume")
MOVES = {
    "register": JobState.REGISTERING,
    "succeed": JobState.SUCCEEDED,
    "fail": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
    "requeue": JobState.QUEUED,
    "paused": JobState.PAUSED,
    "expire": JobState.EXPIRED,
    "restart": JobState.RESTARTING,
}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
@given(steps=st.lists(st.sampled_from([*STEPS, *MOVES]), max_size=15))
def test_whatever_is_tried_an_ended_job_stays_as_it_is(store: JobStore, steps: list[str]) -> None:
    for job in store.in_states(frozenset({JobState.QUEUED})):
        store.cancel(job.name, CANCELLED)
    name = store.create(NEW).name
    for step in steps:
        before = store.get(name)
        try:
            _try(store, name, step)
        except (IllegalTransition, StaleLease, ServiceError):
            assert store.get(name) == before
        if before.state in TERMINAL:
            assert store.get(name).state is before.state
    assert _states(store, name)[-1] is store.get(name).state
    if store.get(name).state not in TERMINAL | IDLE | set(STOPPING):
        store.move(store.get(name).lease, JobState.FAILED)


def _try(store: JobStore, name: TrainingJobName, step: str) -> None:
    match step:
        case "start":
            store.start_next()
        case "running" | "exporting":
            change = StateChange(None, JobState(step.upper()))
            _record(store, name, [change], journal_offset=1)
        case "commit":
            store.begin_commit(store.get(name).lease)
        case "cancel":
            store.cancel(name, CANCELLED)
        case "pause":
            store.pause(name)
        case "resume":
            store.resume(name)
        case _:
            store.move(store.get(name).lease, MOVES[step])


def test_the_layers_around_a_process_are_those_of_its_attempt(store: JobStore) -> None:
    name = store.create(NEW).name
    assert _start(store, name).isolation == ()
    layers = (Layer(LayerName.FILES, True, "held"), Layer(LayerName.MEMORY, False, "no limit"))
    _record(store, name, [], journal_offset=9, isolation=layers)
    assert _record(store, name, [], journal_offset=10).isolation == layers
    store.move(store.get(name).lease, JobState.QUEUED)
    assert _start(store, name).isolation == ()


def test_what_a_process_read_and_how_its_model_does_are_those_of_its_attempt(
    store: JobStore,
) -> None:
    name = store.create(replace(NEW, specification=b"")).name
    _start(store, name)
    summary = DataSummary(parts=(PartSummary("train", 7),), input_shape=(8, 8))
    _record(store, name, [], journal_offset=9, data_summary=summary)
    progress = Progress(1, 3, 40, 9.5, eta_seconds=12.5, steps=120)
    _record(store, name, [MetricReport(progress, ())], journal_offset=10)
    job = store.get(name)
    assert job.progress == progress
    message = replies.job_to_pb(job)
    assert [(part.split, part.rows) for part in message.data_summary.parts] == [("train", 7)]
    assert list(message.data_summary.input_shape) == [8, 8]
    assert message.progress.eta.ToTimedelta().total_seconds() == 12.5
    assert (message.progress.step, message.progress.steps) == (40, 120)
    assert not message.HasField("evaluation")

    _record(store, name, [StateChange(None, JobState.RUNNING)], journal_offset=11)
    _record(store, name, [StateChange(None, JobState.EXPORTING)], journal_offset=12)
    baseline = Metric(name="accuracy", value=0.5, split="test", epoch=0, runtime="baseline")
    evaluation = Evaluation(
        split="test", rows=4, labels=("a", "b"), confusion=(1, 0, 1, 2), baseline=baseline
    )
    job = store.move(store.get(name).lease, JobState.REGISTERING, metrics=(), evaluation=evaluation)
    message = replies.job_to_pb(job)
    assert list(message.evaluation.confusion) == [1, 0, 1, 2]
    assert message.evaluation.baseline.value == 0.5
    short = replies.page_to_pb(store.page(size=1)).training_jobs[0]
    assert not short.HasField("evaluation")
    assert not short.HasField("data_summary")

    other = store.create(replace(NEW, specification=b"")).name
    _start(store, other)
    _record(store, other, [], journal_offset=9, data_summary=summary)
    store.move(store.get(other).lease, JobState.QUEUED)
    assert _start(store, other).data_summary == ""
