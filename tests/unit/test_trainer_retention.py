"""What is left of deleted jobs, in the database and in the folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from modelrail.names import TrainingJobName
from modelrail_server.errors import NotFound
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.retention import Retention
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import JobError, NewJob
from modelrail_trainer.jobs.state import JobState, Reason
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.spec import Publication
from modelrail_trainer.threads import Threads

NEW = NewJob(b"specification", Publication(model="digits", alias="production", description="d"))
CANCELLED = JobError(Reason.CANCELLED_BY_USER, "a client cancelled the job")


class House:
    """A database, and the folders of one trainer."""

    def __init__(self, place: Path | URL, path: Path, threads: Threads) -> None:
        self.store = JobStore(open_database(place), max_queued_jobs=20)
        (path / "jobs").mkdir()
        self.directories = JobDirectories(path / "jobs")
        self._threads = threads

    def retention(self, keep_ended_jobs: int = 0) -> Retention:
        return Retention(
            book=JobBook(self.store, self._threads),
            directories=self.directories,
            threads=self._threads,
            keep_ended_jobs=keep_ended_jobs,
        )

    def ended(self) -> TrainingJobName:
        """A job that was cancelled and has left a folder."""
        name = self.store.create(NEW).name
        self.directories.prepare(name, b"specification")
        self.store.cancel(name, CANCELLED)
        return name

    def folders(self) -> set[str]:
        return {entry.name for entry in self.directories.root.iterdir()}


@pytest.fixture
def house(database_place: Path | URL, tmp_path: Path) -> Iterator[House]:
    threads = Threads(1)
    house = House(database_place, tmp_path, threads)
    yield house
    threads.close()
    house.store.close()


async def test_a_sweep_removes_deleted_jobs_with_their_folders_and_no_others(
    house: House,
) -> None:
    deleted, kept = house.ended(), house.ended()
    house.store.delete(deleted)
    await house.retention().sweep()
    assert house.store.deleted() == []
    assert house.folders() == {kept.training_job}
    assert house.store.get(kept).state is JobState.CANCELLED


async def test_a_sweep_deletes_what_is_not_kept_and_leaves_what_has_not_ended(
    house: House,
) -> None:
    waiting = house.store.create(NEW).name
    names = [house.ended() for _ in range(3)]
    await house.retention(keep_ended_jobs=2).sweep()
    assert [job.name for job in house.store.page(size=10).jobs] == [*names[:0:-1], waiting]
    assert house.folders() == {name.training_job for name in names[1:]}


async def test_without_a_bound_every_ended_job_is_kept(house: House) -> None:
    names = [house.ended() for _ in range(3)]
    await house.retention().sweep()
    assert len(house.store.page(size=10).jobs) == len(names)


async def test_a_folder_that_cannot_be_removed_keeps_its_job_for_the_next_sweep_and_stops_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = house.ended(), house.ended()
    for name in (stuck, other):
        house.store.delete(name)
    rmtree = shutil.rmtree

    def refuse(path: Path, *arguments: Any, **named: Any) -> None:
        if path.name == stuck.training_job:
            raise PermissionError(13, "Permission denied")
        rmtree(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        await house.retention().sweep()
    assert house.store.deleted() == [stuck]
    assert house.folders() == {stuck.training_job}
    await house.retention().sweep()
    assert house.store.deleted() == []
    assert house.folders() == set()


async def test_a_folder_goes_whose_job_another_trainer_removed_and_no_checkpoint_ever(
    house: House,
) -> None:
    known, gone, checkpoints = house.ended(), *map(TrainingJobName, ("gone-job", "not-ended"))
    for name in (gone, checkpoints):
        house.directories.prepare(name, b"specification")
    (house.directories.path(checkpoints) / "checkpoints").mkdir()
    (house.directories.root / "not a job").mkdir()
    await house.retention().sweep()
    expected = {known.training_job, gone.training_job, checkpoints.training_job, "not a job"}
    # A trainer that has its database to itself removes the folder before the row.
    assert house.folders() == expected - ({gone.training_job} if house.store.is_shared else set())


async def test_a_job_that_is_deleted_while_the_service_stops_is_removed_by_the_next_one(
    house: House,
) -> None:
    name = house.ended()
    async with house.retention() as retention:
        pass
    house.store.delete(name)
    retention.deleted(name, "owner")
    assert house.store.deleted() == [name]
    with pytest.raises(NotFound):
        house.store.get(name)
    await house.retention().sweep()
    assert house.store.deleted() == []
