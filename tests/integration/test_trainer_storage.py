"""The supervisor with a database that fails, and with registries that lose answers."""

from __future__ import annotations

import asyncio
import re
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest

from modelrail.client.registry import AsyncRegistryClient
from modelrail_registry.__main__ import build as build_registry
from modelrail_registry.config import RegistryConfig
from modelrail_server.application import Runtime
from modelrail_server.errors import DataLoss, ResourceExhausted, Unavailable
from modelrail_server.server import start_server
from modelrail_trainer.execution import supervisor as supervision
from modelrail_trainer.execution.processes.transcript import Transcript
from modelrail_trainer.handover.artifact import ResultFile, TrainingResult
from modelrail_trainer.handover.journal import JOURNAL_NAME, CheckpointEvent, JournalWriter
from modelrail_trainer.jobs.job import (
    Job,
    JobError,
    JobEvent,
    LogLine,
    MetricReport,
    OutputMark,
    StateChange,
)
from modelrail_trainer.jobs.state import JobState, Reason
from modelrail_trainer.protocol.registry_adapter import RegistryAdapter
from tests.integration.supervised import FailingStore, House, Shelf, house_in

FULL = ResourceExhausted("the storage is full")
BUSY = Unavailable("the database is busy")
DAMAGED = DataLoss("the database is damaged")
CANCELLED = JobError(Reason.CANCELLED_BY_USER, "a client cancelled the job")
STORAGE_FAILED = "the trainer's storage cannot be used now"


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(supervision, "_QUEUE_RETRY_SECONDS", 0.05)
    with house_in(tmp_path, FailingStore(tmp_path / "trainer.sqlite3")) as house:
        yield house


def assert_exactly_once(job: Job, events: list[JobEvent], shelf: Shelf) -> None:
    assert (job.state, job.attempt, job.error) == (JobState.SUCCEEDED, 1, None)
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    happenings = [event.happening for event in events]
    epochs = [h.progress.epoch for h in happenings if isinstance(h, MetricReport) and h.progress]
    assert epochs == [1, 2]
    assert [h.new.value for h in happenings if isinstance(h, StateChange)] == [
        *("QUEUED", "PREPARING", "RUNNING", "EXPORTING", "REGISTERING", "SUCCEEDED")
    ]
    assert len(shelf.versions) == 1
    assert shelf.aliases == {"models/line/aliases/production": job.model_version}


@pytest.mark.parametrize(
    ("method", "nth", "error"),
    [
        ("next_queued", 1, FULL),
        ("start_next", 1, FULL),
        ("set_process", 1, BUSY),
        ("record", 1, FULL),
        ("record", 1, BUSY),
        ("record", 1, DAMAGED),
        ("get", 1, BUSY),
        ("get", 2, BUSY),
        ("get", 3, BUSY),
        ("move", 1, FULL),
        ("move", 2, FULL),
        ("move", 2, BUSY),
        ("begin_commit", 1, FULL),
        ("set_version", 1, FULL),
        ("set_version", 1, DAMAGED),
    ],
)
async def test_a_bad_moment_of_the_database_changes_nothing_about_a_job(
    house: House, method: str, nth: int, error: Exception
) -> None:
    house.store.before[method] = lambda n: error if nth <= n < nth + 2 else None
    shelf = Shelf()
    name = await house.create()
    async with house.supervisor(shelf):
        job, events = await house.ended(name)
    assert house.store.calls[method] >= nth + 2
    assert_exactly_once(job, events, shelf)
    assert not house.model(name).exists()


@pytest.mark.parametrize("method", ["set_process", "record", "begin_commit", "set_version"])
async def test_a_commit_whose_answer_is_lost_is_not_made_twice(house: House, method: str) -> None:
    house.store.after[method] = lambda n: BUSY if n <= 2 else None
    shelf = Shelf()
    name = await house.create()
    async with house.supervisor(shelf):
        job, events = await house.ended(name)
    assert house.store.failed.acquire(blocking=False)
    assert_exactly_once(job, events, shelf)


async def test_a_process_goes_on_while_its_journal_cannot_be_stored(house: House) -> None:
    house.close_gate()
    full = threading.Event()
    full.set()
    house.store.before["record"] = lambda _: FULL if full.is_set() else None
    shelf = Shelf()
    name = await house.create()
    async with house.supervisor(shelf):
        await house.store.until_failed(3)
        await house.open_gate()
        await house.store.until_failed(4)  # the last of them when the process has ended
        assert house.store.get(name).state is JobState.PREPARING
        full.clear()
        job, events = await house.ended(name)
    assert_exactly_once(job, events, shelf)


async def test_a_full_disk_while_the_registry_is_away_keeps_the_model(house: House) -> None:
    house.store.before["note"] = lambda _: FULL
    shelf = Shelf(reachable=False)
    name = await house.create()
    async with house.supervisor(shelf):
        await house.store.until_failed(2)
        assert house.store.get(name).state is JobState.REGISTERING
        assert house.model(name).exists()
    assert house.store.get(name).state is JobState.REGISTERING
    assert house.model(name).exists()
    house.store.before.clear()
    shelf.reachable = True
    async with house.supervisor(shelf):
        job, events = await house.ended(name)
    assert_exactly_once(job, events, shelf)


async def test_an_end_that_cannot_be_stored_is_left_to_the_next_start(house: House) -> None:
    house.store.before["move"] = lambda n: FULL if n > 1 else None
    shelf = Shelf()
    name = await house.create()
    async with house.supervisor(shelf):
        await house.store.until_failed(3)
    assert house.store.get(name).state is JobState.REGISTERING
    assert house.model(name).exists()
    house.store.before.clear()
    async with house.supervisor(shelf):
        job, events = await house.ended(name)
    assert_exactly_once(job, events, shelf)
    assert not house.model(name).exists()


async def test_a_file_that_cannot_be_read_now_is_published_later(house: House) -> None:
    shelf = Shelf(broken_uploads=1)
    name = await house.create()
    async with house.supervisor(shelf):
        job, events = await house.ended(name)
    assert any(
        isinstance(event.happening, LogLine) and STORAGE_FAILED in event.happening.text
        for event in events
    )
    assert_exactly_once(job, events, shelf)


async def test_a_job_that_waits_for_the_storage_can_be_cancelled(house: House) -> None:
    house.store.before["begin_commit"] = lambda _: FULL
    name = await house.create()
    async with house.supervisor(Shelf()) as supervisor:
        await house.store.until_failed(1)
        supervisor.changed(await house.book.change(house.store.cancel, name, CANCELLED))
        job, _ = await house.ended(name)
    assert job.state is JobState.CANCELLED
    assert not house.model(name).exists()


@pytest.mark.parametrize("second", ["has no process yet", "has a process"])
async def test_the_end_of_a_lost_attempt_leaves_the_next_ones_cancellation_alone(
    house: House, second: str
) -> None:
    house.close_gate()
    name = await house.create()
    # And then the trainer was killed: the job is recovered, and runs again.
    house.store.start_next()
    first_may_end, first_is_over, second_may_run = (threading.Event() for _ in range(3))

    def hold_first(number: int) -> None:
        if number == 1:  # its look at the job after it was queued again
            assert first_may_end.wait(60)

    def tell_first(number: int) -> None:
        if number == 1:
            first_is_over.set()

    def hold_second(_: int) -> None:
        assert second_may_run.wait(60)

    house.store.before.update(get=hold_first, set_process=hold_second)
    house.store.after.update(get=tell_first)
    async with house.supervisor(Shelf()) as supervisor:
        if second == "has a process":
            second_may_run.set()
            await house.until(name, lambda e: isinstance(e.happening, MetricReport))
        else:
            await house.until(name, lambda e: e.sequence == 4)  # PREPARING again
        first_may_end.set()
        await asyncio.to_thread(first_is_over.wait, 60)
        await house.book.read(house.store.count_by_state)  # its answer comes after the look's
        second_may_run.set()
        await house.until(name, lambda e: isinstance(e.happening, MetricReport))
        supervisor.changed(await house.book.change(house.store.cancel, name, CANCELLED))
        async with asyncio.timeout(30):
            job, _ = await house.ended(name)
    assert (job.state, job.attempt) == (JobState.CANCELLED, 2)


async def test_a_job_that_could_not_begin_before_the_trainer_was_killed_runs_again(
    house: House,
) -> None:
    name = await house.create()
    started = house.store.start_next()
    assert started is not None
    house.store.note(started.lease, JobError(Reason.DISK_FULL, "the trainer's disk is full"))
    async with house.supervisor(Shelf()):
        job, _ = await house.ended(name)
    assert (job.state, job.attempt, job.error) == (JobState.SUCCEEDED, 2, None)


async def test_a_cancellation_while_the_process_is_started_keeps_its_reason(house: House) -> None:
    may_start, starts = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        starts.set()
        assert may_start.wait(60)

    house.store.before["set_process"] = hold
    name = await house.create()
    async with house.supervisor(Shelf()) as supervisor:
        await asyncio.to_thread(starts.wait, 60)
        supervisor.changed(await house.book.change(house.store.cancel, name, CANCELLED))
        may_start.set()
        job, _ = await house.ended(name)
    assert (job.state, job.error) == (JobState.CANCELLED, CANCELLED)


async def test_a_cancellation_between_the_process_and_the_publisher_is_heard(house: House) -> None:
    may_look, looks = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 2:  # the look before the publication
            looks.set()
            assert may_look.wait(60)

    house.store.before["get"] = hold
    shelf = Shelf()
    name = await house.create()
    async with house.supervisor(shelf) as supervisor:
        await asyncio.to_thread(looks.wait, 60)
        supervisor.changed(await house.book.change(house.store.cancel, name, CANCELLED))
        may_look.set()
        async with asyncio.timeout(30):
            job, _ = await house.ended(name)
    assert job.state is JobState.CANCELLED
    assert shelf.versions == {}
    assert not house.model(name).exists()


async def test_a_job_that_was_resumed_before_its_pause_was_heard_runs_on(house: House) -> None:
    may_start, starts = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        starts.set()
        assert may_start.wait(60)

    house.store.before["start_next"] = hold
    shelf = Shelf()
    name = await house.create()
    async with house.supervisor(shelf) as supervisor:
        await asyncio.to_thread(starts.wait, 60)
        supervisor.changed(await house.book.change(house.store.pause, name))
        supervisor.changed(await house.book.change(house.store.resume, name))
        may_start.set()
        job, _ = await house.ended(name)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


async def test_a_defect_of_the_trainer_is_told_with_its_trace(house: House) -> None:
    house.store.before["record"] = lambda number: KeyError("/var/secret/place")
    name = await house.create()
    async with house.supervisor(Shelf()):
        job, _ = await house.ended(name)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.reason is Reason.INTERNAL
    assert job.error.message.startswith("a defect of the trainer: KeyError: 'place'\n  ")
    assert re.search(r"\n  tests\.integration\.supervised:\d+ in _fail$", job.error.message)


# What processes print


async def test_what_is_printed_is_stored_once_whoever_follows_and_whatever_answer_is_lost(
    house: House,
) -> None:
    name = await house.create()
    job = house.store.start_next()
    assert job is not None
    directory = house.path / "jobs" / name.training_job
    directory.mkdir()
    output = directory / "worker.log"
    output.write_text("".join(f"{number}\n" for number in range(1000)))
    first = Transcript(house.book, job, directory, house.threads)
    await first.catch_up()
    # A flood keeps nobody from looking at anything else.
    assert house.store.get(name).last_sequence == 2 + 200
    house.store.after["record"] = lambda number: BUSY if number == 2 else None
    with pytest.raises(Unavailable):
        await first.catch_up()
    await first.catch_up()
    second = Transcript(house.book, house.store.get(name), directory, house.threads)
    await second.catch_up(ended=True)
    await second.catch_up(ended=True)
    events, _ = house.store.events_after(name, 2, limit=2000)
    assert [event.happening for event in events] == [LogLine(str(n)) for n in range(1000)]
    spent = house.store.get(name).output
    assert spent.offset == output.stat().st_size
    house.store.move(house.store.get(name).lease, JobState.QUEUED)
    again = house.store.start_next()
    assert again is not None
    assert again.output == OutputMark(0, spent.spent_bytes)


@pytest.mark.parametrize(
    ("wish", "state"),
    [
        (None, JobState.SUCCEEDED),
        ("cancel", JobState.CANCELLED),
        ("pause", JobState.PAUSED),
    ],
)
async def test_what_an_earlier_attempt_told_is_not_stored_again_when_the_next_never_began(
    house: House, wish: str | None, state: JobState
) -> None:
    house.close_gate()
    name = await house.create()
    async with house.supervisor(Shelf()):
        await house.until(name, lambda event: isinstance(event.happening, MetricReport))
    # A trainer that was killed before it had emptied the directory.
    for _ in range(2):
        started = house.store.start_next()
        assert started is not None
        if started.attempt == 2:
            house.store.move(started.lease, JobState.QUEUED, lost=True)
    with JournalWriter(house.path / "jobs" / name.training_job / JOURNAL_NAME) as journal:
        journal.write(CheckpointEvent(step=20, since=10))
    if wish == "cancel":
        house.store.cancel(name, CANCELLED)
    elif wish == "pause":
        house.store.pause(name)
    house.gate.unlink()
    async with house.supervisor(Shelf()):
        if state is JobState.PAUSED:
            await house.until(
                name,
                lambda event: (
                    isinstance(event.happening, StateChange) and event.happening.new is state
                ),
            )
            events, _ = house.store.events_after(name, 0, limit=200)
            job = house.store.get(name)
        else:
            job, events = await house.ended(name)
    assert job.state is state
    reports = [e.happening for e in events if isinstance(e.happening, MetricReport)]
    epochs = [report.progress.epoch for report in reports if report.progress]
    assert epochs == ([1, 1, 2] if wish is None else [1])
    # The checkpoint was of the attempt before.
    assert job.losses == (2 if wish is None else 1)


# A real registry


@asynccontextmanager
async def real_registry(folder: Path) -> AsyncIterator[AsyncRegistryClient]:
    config = RegistryConfig(grpc_address=f"unix:{folder}/r", data_dir=folder / "registry")
    runtime = Runtime("registry")
    async with build_registry(config, runtime) as application:
        server, address = await start_server(application, config, runtime)
        try:
            async with AsyncRegistryClient(address) as client:
                yield client
        finally:
            runtime.stopping.set()
            await server.stop(0)


class ForgetfulRegistry(RegistryAdapter):
    """Makes versions under ids that it does not know again, and never answers."""

    def __init__(self, client: AsyncRegistryClient) -> None:
        super().__init__(client)
        self.made = asyncio.Event()

    async def create_version(self, result: TrainingResult, job: Job, request_id: str) -> str:
        await super().create_version(result, job, str(uuid.uuid4()))
        self.made.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def test_a_version_whose_request_id_was_forgotten_is_adopted(
    house: House, tmp_path: Path
) -> None:
    async with real_registry(tmp_path) as client:
        name = await house.create()
        forgetful = ForgetfulRegistry(client)
        async with house.supervisor(forgetful):
            await forgetful.made.wait()
        assert house.store.get(name).state is JobState.REGISTERING
        async with house.supervisor(RegistryAdapter(client)) as supervisor:
            job, _ = await house.ended(name)
            other = await house.create()
            supervisor.queue_changed()
            other_job, _ = await house.ended(other)
        versions = [version async for version in client.list_model_versions("models/line")]
        assert (job.state, job.model_version) == (JobState.SUCCEEDED, "models/line/versions/1")
        assert other_job.model_version == "models/line/versions/2"
        assert [v.lineage.training_job for v in versions] == [str(other), str(name)]


async def test_a_version_is_found_behind_newer_ones_and_only_for_its_job(
    house: House, tmp_path: Path
) -> None:
    async with real_registry(tmp_path) as client:
        adapter = RegistryAdapter(client)
        names = [await house.create() for _ in range(2)]
        assert await adapter.version_of(house.store.get(names[0])) is None  # nor is there a model
        async with house.supervisor(adapter):
            jobs = [(await house.ended(name))[0] for name in names]
        assert [await adapter.version_of(job) for job in jobs] == [
            "models/line/versions/1",
            "models/line/versions/2",
        ]
        assert await adapter.version_of(house.store.get(await house.create())) is None


SECRET = b"the key of another service"
# It knows the secret, and keeps a file of the same content under a path that it can turn elsewhere.
KEY = f"""\
    (directory / "sub").mkdir()
    (directory / "sub" / "key").write_bytes({SECRET!r})
    x, y ="""
FILES = """\
        files=tuple(
            artifact.describe_file(directory, n, "x") for n in ("model.onnx", "sub/key")),"""
GREEDY = {
    "    x, y =": KEY,
    '        files=(artifact.describe_file(directory, "model.onnx", "application/onnx"),),': FILES,
}
TURN = """\
    (directory / "sub").rename(directory / "aside")
    (directory / "sub").symlink_to(directory.parent.parent / "secrets")
    log.write(journal.FinishedEvent())"""
TURNED = {"    log.write(journal.FinishedEvent())": TURN}


@dataclass
class Robbed(Shelf):
    """A registry at whose first upload somebody turns the path of the second file elsewhere."""

    path: Path = Path()
    received: list[bytes] = field(default_factory=list)

    async def upload(self, content: BufferedReader, file: ResultFile) -> None:
        self.received.append(content.read())
        (sub,) = self.path.glob("jobs/*/sub")
        sub.rename(sub.parent / "aside")
        sub.symlink_to(self.path / "secrets")


@pytest.mark.parametrize("turned", ["before the check", "after the check"])
async def test_a_file_outside_the_directory_of_a_job_is_never_sent(
    house: House, turned: str
) -> None:
    (house.path / "secrets").mkdir()
    (house.path / "secrets" / "key").write_bytes(SECRET)
    early = turned == "before the check"
    worker = house.path / "worker.py"
    program = worker.read_text()
    for before, after in (GREEDY | (TURNED if early else {})).items():
        assert before in program
        program = program.replace(before, after)
    worker.write_text(program)
    shelf = Robbed(path=house.path)
    name = await house.create()
    async with asyncio.timeout(60), house.supervisor(shelf):
        job, _ = await house.ended(name)
    assert job.state is JobState.FAILED
    assert job.error == JobError(
        Reason.INTERNAL, "file 'sub/key' cannot be published: it is no file that may be read"
    )
    assert SECRET not in shelf.received
    assert len(shelf.received) == (0 if early else 1)
    assert not shelf.versions
