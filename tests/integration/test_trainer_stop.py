"""Real jobs that are paused, or whose service or machine stops: no step that was made is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.integration.house import (
    REAL_WORKER,
    House,
    ScriptedRegistry,
    TrainerUnderTest,
    processes_of,
    states,
)
from tests.integration.replica_jobs import digits

Job = pb.TrainingJob


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, ScriptedRegistry(), REAL_WORKER)  # type: ignore[abstract]


@pytest.fixture
async def trainer(house: House) -> AsyncIterator[TrainerUnderTest]:
    async with house.trainer(cancel_grace_seconds=60.0) as trainer:
        yield trainer


def endless() -> pb.TrainingJobSpec:
    """With a checkpoint every 30 seconds, as by default: long after these tests are over."""
    spec = digits(epochs=100_000)
    spec.checkpoint_every_steps = 0
    return spec


async def training(trainer: TrainerUnderTest, processes: int) -> str:
    """Returns a job that has trained an epoch at least, and has no checkpoint."""
    name = (await trainer.client.create_job(endless(), policy=RunPolicy(processes=processes))).name
    await trainer.until(name, lambda event: event.metric_report.progress.epoch > 0)
    assert kept_step(trainer, name) == 0
    return name


def kept_step(trainer: TrainerUnderTest, name: str) -> int:
    """The step after which the newest checkpoint was written; 0 for none."""
    paths = trainer.directory(name).glob("checkpoints/step-*.safetensors")
    return max((int(path.stem.removeprefix("step-")) for path in paths), default=0)


async def told_step(trainer: TrainerUnderTest, name: str) -> int:
    """The last step that the job has told of, in all its attempts."""
    told = 0
    async for event in trainer.client.watch_job(name):
        told = max(told, event.metric_report.progress.step)
        if event.state_change.new_state in {Job.STATE_PAUSED, Job.STATE_QUEUED} and told:
            return told
    raise AssertionError("the job has ended")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_a_paused_job_goes_on_from_the_step_at_which_it_was_paused(
    trainer: TrainerUnderTest, processes: int
) -> None:
    name = await training(trainer, processes)
    await trainer.client.pause_job(name)
    await trainer.until_state(name, Job.STATE_PAUSED)
    assert processes_of(trainer) == []
    step = kept_step(trainer, name)
    assert step >= await told_step(trainer, name) > 0
    await trainer.until_line(name, f"stops as it was asked to; a checkpoint holds all {step} steps")
    await trainer.client.resume_job(name)
    await trainer.until_line(name, f"goes on from the checkpoint after step {step}, in epoch ")
    await trainer.client.cancel_job(name)
    assert "FAILED" not in states(await trainer.events(name))


async def test_a_service_that_stops_keeps_the_steps_of_its_jobs(house: House) -> None:
    async with house.trainer(cancel_grace_seconds=60.0) as trainer:
        name = await training(trainer, 1)
    step = kept_step(trainer, name)
    assert step > 0
    async with house.trainer() as trainer:
        await trainer.until_line(name, f"goes on from the checkpoint after step {step}, in epoch ")
        await trainer.client.cancel_job(name)
        assert (await trainer.ended(name)).attempt == 2


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_a_job_that_somebody_else_stops_waits_for_its_turn_and_goes_on(
    trainer: TrainerUnderTest, processes: int
) -> None:
    name = await training(trainer, processes)
    # The oldest is the one that the trainer has started; of several, torchrun.
    first = min(map(psutil.Process, processes_of(trainer)), key=psutil.Process.create_time)
    os.kill(first.pid, signal.SIGTERM)
    await trainer.until_line(name, "goes on from the checkpoint after step ")
    job = await trainer.client.get_job(name)
    assert (job.attempt, job.HasField("error")) == (2, False)
    await trainer.client.cancel_job(name)
    (why,) = (
        event.state_change.error
        for event in await trainer.events(name)
        if event.state_change.new_state == Job.STATE_QUEUED and event.state_change.old_state
    )
    assert why.reason == pb.JobError.REASON_PROCESS_DIED
    assert why.message.startswith("its process was told to stop")
    assert (await trainer.client.get_job(name)).state == Job.STATE_CANCELLED
