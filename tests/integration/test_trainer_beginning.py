"""What cannot begin now, jobs and errands: the disk is full, or the machine starts no process."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from modelrail.client.errors import FailedPrecondition, Unavailable
from modelrail.client.trainer import RunPolicy
from modelrail.names import TrainingJobName
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.execution.processes import local
from modelrail_trainer.execution.processes.directory import JobDirectories
from tests.integration.house import (
    SUCCESS,
    House,
    TrainerUnderTest,
    line_spec,
    serving_registry,
    states,
)

Job = pb.TrainingJob
SECONDS = 30.0


class Disk:
    """The disk of the jobs' folders, which a test fills."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: int | None = None
        prepare = JobDirectories.prepare

        def tried(directories: JobDirectories, name: TrainingJobName, content: bytes) -> Path:
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error), "/secret/place")
            return prepare(directories, name, content)

        monkeypatch.setattr(JobDirectories, "prepare", tried)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def waiting(
    trainer: TrainerUnderTest, script: str = SUCCESS, policy: RunPolicy | None = None
) -> pb.TrainingJob:
    """Returns a job that says that it waits."""
    name = (await trainer.client.create_job(line_spec(script), policy=policy)).name
    async with asyncio.timeout(SECONDS):
        await trainer.until(name, lambda event: bool(event.log_line.text))
    return await trainer.client.get_job(name)


async def ended(trainer: TrainerUnderTest, name: str) -> pb.TrainingJob:
    async with asyncio.timeout(SECONDS):
        return await trainer.ended(name)


async def test_a_job_that_finds_the_disk_full_says_so_and_begins_when_there_is_room(
    trainer: TrainerUnderTest, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    job = await waiting(trainer)
    assert (job.state, job.error.reason) == (Job.STATE_PREPARING, pb.JobError.REASON_DISK_FULL)
    assert "the trainer's disk is full; the job begins when room is made" in job.error.message
    disk.error = None
    job = await ended(trainer, job.name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1)
    assert not job.HasField("error")


async def test_what_a_disk_says_is_told_without_its_places(
    trainer: TrainerUnderTest, disk: Disk
) -> None:
    disk.error = errno.EIO
    job = await waiting(trainer)
    assert "cannot begin the job now (Input/output error); trying again" in job.error.message
    assert "secret" not in job.error.message


async def test_a_job_that_waits_for_the_disk_is_cancelled_at_once(
    trainer: TrainerUnderTest, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    name = (await waiting(trainer)).name
    await trainer.client.cancel_job(name)
    job = await ended(trainer, name)
    assert (job.state, job.attempt) == (Job.STATE_CANCELLED, 1)
    assert job.error.reason == pb.JobError.REASON_CANCELLED_BY_USER


async def test_a_job_that_waits_for_the_disk_is_paused_and_resumed(
    trainer: TrainerUnderTest, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    name = (await waiting(trainer)).name
    await trainer.client.pause_job(name)
    await trainer.until_state(name, Job.STATE_PAUSED)
    assert not (await trainer.client.get_job(name)).HasField("error")
    disk.error = None
    await trainer.client.resume_job(name)
    assert (await ended(trainer, name)).state == Job.STATE_SUCCEEDED


async def test_the_time_in_which_a_job_waits_for_the_disk_counts(
    trainer: TrainerUnderTest, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    name = (await waiting(trainer, policy=RunPolicy(max_run_seconds=0.5))).name
    job = await ended(trainer, name)
    assert (job.state, job.error.reason) == (Job.STATE_EXPIRED, pb.JobError.REASON_TIMEOUT)
    assert "max_run_duration is 0.5 s" in job.error.message
    assert "it waited because the trainer's disk is full" in job.error.message


async def test_what_a_job_waited_for_is_not_why_its_process_died(
    trainer: TrainerUnderTest, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    name = (await waiting(trainer, "kill")).name
    disk.error = None
    job = await ended(trainer, name)
    assert (job.state, job.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_PROCESS_DIED)


async def test_a_job_that_waits_for_the_disk_is_queued_again_when_the_service_stops(
    house: House, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    async with serving_registry(house.registry, house.registry_address):
        async with house.trainer() as trainer:
            name = (await waiting(trainer)).name
        disk.error = None
        async with house.trainer() as trainer:
            events = await trainer.events(name)
            job = await trainer.client.get_job(name)
    assert states(events)[:4] == ["QUEUED", "PREPARING", "QUEUED", "PREPARING"]
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2)


def refusing(times: int, error: int, popen: Callable[..., Any]) -> Callable[..., Any]:
    """Returns how a machine starts processes that refuses the first ones."""
    left = [times]

    def tried(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error))
        return popen(*args, **kwargs)

    return tried


async def test_a_process_that_the_machine_refuses_for_a_moment_is_started_later(
    trainer: TrainerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = refusing(2, errno.EAGAIN, subprocess.Popen)
    monkeypatch.setattr(local.subprocess, "Popen", popen)  # type: ignore[attr-defined]
    name = (await trainer.create()).name
    events = await trainer.events(name)
    job = await trainer.client.get_job(name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1), job.error.message
    assert not job.HasField("error")
    lines = [event.log_line.text for event in events if event.HasField("log_line")]
    (said,) = {line for line in lines if "cannot begin" in line}
    assert "cannot begin the job now (Resource temporarily unavailable)" in said
    assert states(events).count("PREPARING") == 1


async def test_a_process_that_can_never_be_started_fails_the_job(
    trainer: TrainerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = refusing(1, errno.ENOENT, subprocess.Popen)
    monkeypatch.setattr(local.subprocess, "Popen", popen)  # type: ignore[attr-defined]
    job = await ended(trainer, (await trainer.create()).name)
    assert (job.state, job.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_INTERNAL)


# Errands: their callers wait, and try again themselves


@pytest.fixture
async def errand(
    request: pytest.FixtureRequest, house: House
) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Sends a trainer on an errand."""
    rows = house.tmp_path / "rows.csv"
    rows.write_text("x,kind\n1,a\n2,b\n")
    dataset = pb.Dataset(table=pb.TableDataset(paths=[str(rows)], target="kind"))
    async with house.trainer(data_root=(str(house.tmp_path),)) as trainer:
        client = trainer.client
        yield {
            "dry run": lambda: client.create_job(line_spec(), dry_run=True, validate_only=True),
            "inspection": lambda: client.inspect_dataset(dataset),
        }[request.param]


@pytest.mark.parametrize("errand", ["dry run", "inspection"], indirect=True)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
async def test_an_errand_that_finds_the_disk_full_says_so_and_what_to_do(
    errand: Callable[[], Awaitable[object]], disk: Disk, error: int
) -> None:
    disk.error = error
    with pytest.raises(FailedPrecondition) as raised:
        await errand()
    assert raised.value.metadata["failure"] == "DISK_FULL"
    assert str(raised.value).endswith(
        ": DISK_FULL: the trainer's disk is full; have room made there, then try again"
    )


@pytest.mark.parametrize("errand", ["inspection"], indirect=True)
async def test_an_errand_that_the_machine_refuses_for_a_moment_can_be_sent_again(
    errand: Callable[[], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = refusing(1, errno.EAGAIN, subprocess.Popen)
    monkeypatch.setattr(local.subprocess, "Popen", popen)  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="cannot carry out the inspection now") as raised:
        await errand()
    assert "(Resource temporarily unavailable); try again later" in str(raised.value)
    assert raised.value.reason == "MACHINE_BUSY"
