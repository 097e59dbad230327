"""The trainer as a real process, beside a real registry, killed where it hurts."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from modelrail.client.trainer import AsyncTrainerClient, RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import JOURNAL_NAME, CheckpointEvent, JournalWriter
from tests.faults.gated import SPEC, GatedSite, gated_site, until_event
from tests.faults.trainers import WAIT_SECONDS
from tests.faults.trainers import site as real_site

Job = pb.TrainingJob


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[GatedSite]:
    async with gated_site(tmp_path) as found:
        yield found


async def _ended(client: AsyncTrainerClient, name: str) -> tuple[pb.TrainingJob, list[int]]:
    epochs = [
        event.metric_report.progress.epoch
        async for event in client.watch_job(name)
        if event.HasField("metric_report")
    ]
    return await client.get_job(name), epochs


async def why_queued_again(client: AsyncTrainerClient, name: str) -> pb.JobError:
    """Returns what the event tells that queued a job for the second time, after it ran."""
    async for event in client.watch_job(name):
        change = event.state_change
        if (change.old_state, change.new_state) == (Job.STATE_RUNNING, Job.STATE_QUEUED):
            return change.error
    raise AssertionError("it ended without running again")


async def lost_with_its_trainer(site: GatedSite) -> str:
    """Returns the name of a job whose trainer was killed in the middle, and then its process."""
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await until_event(trainer.client, name)
        (worker,) = site.workers()
        await trainer.end(signal.SIGKILL)
    worker.kill()
    await asyncio.to_thread(psutil.wait_procs, [worker], 60)
    return name


async def test_a_killed_service_adopts_the_running_worker(site: GatedSite) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await until_event(trainer.client, name)
        (worker,) = site.workers()
        await trainer.end(signal.SIGKILL)
    assert site.workers() == [worker]
    async with site.trainer() as trainer:
        await site.open_gate()
        job, epochs = await _ended(trainer.client, name)
        assert await trainer.end(signal.SIGTERM) == 0
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1)
    assert epochs == [1, 2]
    assert await site.versions() == [job.model_version]
    assert site.workers() == []


async def test_an_adopted_process_is_ended_when_the_time_of_its_job_is_up(site: GatedSite) -> None:
    async with site.trainer() as trainer:
        policy = RunPolicy(max_run_seconds=3600)
        name = (await trainer.client.create_job(SPEC, policy=policy)).name
        await until_event(trainer.client, name)
        (worker,) = site.workers()
        await trainer.end(signal.SIGKILL)
    assert site.workers() == [worker]
    # As if an hour had gone by.
    with closing(sqlite3.connect(site.path / "trainer" / "trainer.sqlite3")) as database:
        database.execute("UPDATE jobs SET run_seconds = 3600")
        database.commit()
    async with site.trainer() as trainer:
        job, _ = await _ended(trainer.client, name)
    assert (job.state, job.attempt) == (Job.STATE_EXPIRED, 1)
    assert site.workers() == []


async def test_an_adopted_process_whose_cpu_time_is_up_is_told_as_that(tmp_path: Path) -> None:
    spec = pb.TrainingJobSpec()
    spec.CopyFrom(SPEC)
    spec.epochs = 100_000
    async with real_site(tmp_path) as site:
        async with site.trainer() as trainer:
            name = (await trainer.client.create_job(spec)).name
            await until_event(trainer.client, name)
            (worker,) = site.workers()
            await trainer.end(signal.SIGKILL)
        async with site.trainer() as trainer:
            used = worker.cpu_times()
            limit = int(used.user + used.system) + 1
            resource.prlimit(worker.pid, resource.RLIMIT_CPU, (limit, limit + 60))
            async with asyncio.timeout(WAIT_SECONDS):
                job, _ = await _ended(trainer.client, name)
    assert (job.state, job.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_TIMEOUT)
    assert "--max-job-cpu-seconds" in job.error.message


async def test_a_result_that_was_finished_without_a_service_is_published(site: GatedSite) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await until_event(trainer.client, name)
        (worker,) = site.workers()
        await trainer.end(signal.SIGKILL)
    await site.open_gate()
    await asyncio.to_thread(psutil.wait_procs, [worker], 60)
    async with site.trainer() as trainer:
        job, epochs = await _ended(trainer.client, name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1)
    assert epochs == [1, 2]
    assert await site.versions() == [job.model_version]


async def test_a_worker_lost_with_the_service_runs_again(site: GatedSite) -> None:
    name = await lost_with_its_trainer(site)
    async with site.trainer() as trainer:
        await site.open_gate()
        job, _ = await _ended(trainer.client, name)
        why = await why_queued_again(trainer.client, name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2)
    assert why.reason == pb.JobError.REASON_PROCESS_DIED
    assert why.message.startswith("its process was lost with the trainer")
    assert not job.HasField("error")
    assert await site.versions() == [job.model_version]


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (CheckpointEvent(step=20, since=10), Job.STATE_SUCCEEDED),
        (CheckpointEvent(step=20, since=0), Job.STATE_FAILED),
        (None, Job.STATE_FAILED),
    ],
    ids=["further", "anew", "nothing"],
)
async def test_a_job_is_lost_three_times_in_one_place_and_no_more(
    site: GatedSite, told: CheckpointEvent | None, state: pb.TrainingJob.State
) -> None:
    name = await lost_with_its_trainer(site)
    with closing(sqlite3.connect(site.path / "trainer" / "trainer.sqlite3")) as database:
        database.execute("UPDATE jobs SET losses = 2")
        database.commit()
    if told is not None:  # after the service had looked for the last time
        (directory,) = (site.path / "trainer" / "jobs").iterdir()
        with JournalWriter(directory / JOURNAL_NAME) as journal:
            journal.write(told)
    async with site.trainer() as trainer:
        if state == Job.STATE_SUCCEEDED:
            await site.open_gate()
        async with asyncio.timeout(WAIT_SECONDS):
            job, _ = await _ended(trainer.client, name)
    assert job.state == state
    if state == Job.STATE_FAILED:
        assert job.error.reason == pb.JobError.REASON_PROCESS_DIED
        assert "lost with the trainer 3 times" in job.error.message
        assert "clone the job" in job.error.message


async def test_a_killed_worker_fails_its_job(site: GatedSite) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await until_event(trainer.client, name)
        (worker,) = site.workers()
        worker.kill()
        job, _ = await _ended(trainer.client, name)
    assert job.state == Job.STATE_FAILED
    assert job.error.reason == pb.JobError.REASON_PROCESS_DIED
    assert "SIGKILL" in job.error.message


async def test_an_adopted_worker_whose_journal_became_a_pipe_fails_and_is_ended(
    site: GatedSite,
) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await until_event(trainer.client, name)
        await trainer.end(signal.SIGKILL)
    (journal,) = site.path.glob("**/events.jsonl")
    journal.unlink()
    os.mkfifo(journal)
    async with site.trainer() as trainer:
        job, _ = await _ended(trainer.client, name)
        assert job.state == Job.STATE_FAILED
        assert "the journal cannot be read" in job.error.message
        assert site.workers() == []


async def test_sigterm_leaves_no_process_and_the_next_start_finishes_the_job(
    site: GatedSite,
) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await until_event(trainer.client, name)
        assert await trainer.end(signal.SIGTERM) == 0
    assert site.workers() == []
    async with site.trainer() as trainer:
        await site.open_gate()
        job, _ = await _ended(trainer.client, name)
        why = await why_queued_again(trainer.client, name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2)
    assert why.reason == pb.JobError.REASON_PROCESS_DIED
    assert why.message.startswith("the trainer was stopped")
    assert await site.versions() == [job.model_version]


async def test_a_real_job_outlives_the_killed_service(tmp_path: Path) -> None:
    spec = pb.TrainingJobSpec()
    spec.CopyFrom(SPEC)
    spec.epochs = 2_000
    spec.log_every_epochs = 100
    async with real_site(tmp_path) as site:
        async with site.trainer() as trainer:
            name = (await trainer.client.create_job(spec)).name
            await until_event(trainer.client, name)
            await trainer.end(signal.SIGKILL)
        async with site.trainer() as trainer:
            job, epochs = await _ended(trainer.client, name)
        assert [version.name for version in await site.versions("line")] == [job.model_version]
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1), job.error.message
    assert epochs[:2_000] == list(range(1, 2_001))
