"""Callers who leave while what they want is being stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelrail.names import TrainingJobName
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError, NewJob
from modelrail_trainer.jobs.state import JobState, Reason
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.spec import Publication
from modelrail_trainer.threads import Threads
from modelrail_trainer.trainer import Trainer
from tests.thread_gate import Gate

NEW = NewJob(b"specification", Publication(model="digits", alias="production", description="d"))
CANCELLED = JobError(Reason.CANCELLED_BY_USER, "a client cancelled the job")


class House:
    """A database, and a trainer whose other parts only note what they are told."""

    def __init__(self, path: Path, threads: Threads) -> None:
        self.store = JobStore(open_database(path / "database.sqlite3"), max_queued_jobs=20)
        self.book = JobBook(self.store, threads)
        self.told: list[str] = []
        supervisor: Any = SimpleNamespace(
            queue_changed=lambda: self.told.append("queue"),
            changed=lambda job: self.told.append(str(job.state)),
        )
        retention: Any = SimpleNamespace(deleted=lambda name, actor: self.told.append("deleted"))
        anything: Any = SimpleNamespace(find=None, resolve=None, resolve_folder=None)
        self.trainer = Trainer(
            self.book,
            supervisor,
            retention=retention,
            dry_runs=anything,
            inspections=anything,
            data_roots=anything,
            object_roots=anything,
            code_roots=anything,
            stopping=asyncio.Event(),
        )

    def hold(self, method: str, monkeypatch: pytest.MonkeyPatch) -> Gate:
        """Keeps a method of the store from returning after it has done its work."""
        gate = Gate()
        stored = getattr(self.store, method)

        def held(*args: Any, **kwargs: Any) -> Job:
            job: Job = stored(*args, **kwargs)
            gate.wait()
            return job

        monkeypatch.setattr(self.store, method, held)
        return gate


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    threads = Threads()
    house = House(tmp_path, threads)
    yield house
    threads.close()
    house.store.close()


async def leaves(call: Awaitable[object], gate: Gate) -> None:
    """Has the caller leave while the gate holds what it wants."""
    task = asyncio.ensure_future(call)
    await gate.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task


WISHES: dict[str, tuple[Callable[[Trainer, TrainingJobName], Awaitable[object]], str]] = {
    "create": (lambda trainer, _: trainer.create(NEW, "", "a client"), "queue"),
    "clone": (lambda trainer, name: trainer.clone(name, "", "a client"), "queue"),
    "cancel": (lambda trainer, name: trainer.cancel(name, "a client"), "CANCELLED"),
    "pause": (lambda trainer, name: trainer.pause(name, "a client"), "PAUSED"),
    "resume": (lambda trainer, name: trainer.resume(name, 0, "a client"), "QUEUED"),
    "delete": (lambda trainer, name: trainer.delete(name, "a client"), "deleted"),
}


@pytest.mark.parametrize("method", WISHES)
async def test_what_is_stored_is_acted_on_although_the_caller_leaves(
    method: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = house.store.create(NEW).name
    if method == "resume":
        house.store.pause(name)
    if method == "delete":
        house.store.cancel(name, CANCELLED)
    gate = house.hold(method, monkeypatch)
    wish, told = WISHES[method]
    await leaves(wish(house.trainer, name), gate)
    assert house.told == [told]


async def test_watchers_look_after_what_a_caller_who_leaves_has_stored(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = house.store.create(NEW).name
    gate, passed = house.hold("cancel", monkeypatch), []
    monkeypatch.setattr(house.book, "stir", lambda _: passed.append(gate.is_open))
    await leaves(house.book.change(house.store.cancel, name, CANCELLED), gate)
    assert passed == [True]
    assert house.store.get(name).state is JobState.CANCELLED
