"""Jobs whose worker, trainer or both are killed anywhere in their lives end with the same bytes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.trainers import Job, Running, Site, site, until

# 1,259 training rows in batches of 16: 79 steps an epoch.
SPEC = pb.TrainingJobSpec(
    dataset=pb.Dataset(bundled="digits"),
    split=pb.Split(validation_fraction=0.15, test_fraction=0.15, seed=1),
    preprocessing=[pb.Preprocessing(min_max_scale=pb.MinMaxScale())],
    model=pb.ModelSpec(cnn=pb.CnnModel(channels=[4], hidden_units=16, dropout=0.2)),
    loss=pb.Loss(cross_entropy=pb.CrossEntropy()),
    optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=0.003)),
    epochs=4,
    batch_size=16,
    seed=1,
    checkpoint_every_steps=7,
    publication=pb.Publication(model="digits"),
)
VICTIMS = ("worker", "service", "worker and service")
# A worker that was killed is one retry; the others cost none.
POLICY = RunPolicy(max_retries=1)


@dataclass(frozen=True, slots=True)
class Point:
    """Where in a job's life who is killed.

    Attributes:
        victim: One of `VICTIMS`.
        lines: So many lines of the journal must be there, or
        step: the checkpoint after this step or a later one.
    """

    victim: str
    lines: int = 0
    step: int = 0

    def is_reached(self, job: Job) -> bool:
        return job.checkpointed_step >= self.step if self.step else job.lines >= self.lines


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run that nothing happened to.

    Attributes:
        sha256: Of model.onnx as the registry has it.
        lines: Of its journal.
        step: Of its last checkpoint.
    """

    sha256: str
    lines: int
    step: int

    def points(self, number: int, chance: random.Random) -> list[Point]:
        """Returns points all over a job's life, for one victim after the other."""
        points = []
        for turn in range(number):
            victim = VICTIMS[turn % len(VICTIMS)]
            if chance.random() < 0.5:
                points.append(Point(victim, lines=chance.randint(1, self.lines)))
            else:
                points.append(Point(victim, step=chance.randint(1, self.step)))
        return points


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        yield found


async def digest_of(place: Site, job: pb.TrainingJob) -> str:
    """Returns the digest of the one version that the job has published."""
    own = [v for v in await place.versions("digits") if v.lineage.training_job == job.name]
    assert [version.name for version in own] == [job.model_version]
    (file,) = [file for file in own[0].files if file.path == "model.onnx"]
    return file.sha256


async def undisturbed(place: Site, trainer: Running) -> Undisturbed:
    job = await trainer.submit(SPEC)
    step = 0

    async def look() -> None:
        nonlocal step
        while True:
            step = max(step, job.checkpointed_step)  # They go when the job has ended.
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    ended, _ = await trainer.ended(job)
    looking.cancel()
    assert ended.state == pb.TrainingJob.STATE_SUCCEEDED, ended.error.message
    assert step > 200
    return Undisturbed(await digest_of(place, ended), job.lines, step)


async def kill(point: Point, place: Site, trainer: Running) -> None:
    """Kills the victims; a worker that has just ended is none any more."""
    workers = place.workers() if "worker" in point.victim else []
    if "service" in point.victim:
        await trainer.end(signal.SIGKILL)
    for worker in workers:
        try:
            worker.kill()
        except psutil.NoSuchProcess:
            continue
    await asyncio.to_thread(psutil.wait_procs, workers, 60)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("points", [3, pytest.param(20, marks=pytest.mark.slow)])
async def test_a_job_that_is_killed_anywhere_publishes_the_same_bytes_once(
    place: Site, points: int
) -> None:
    seed = int(os.environ.get("MODELRAIL_KILL_SEED") or random.SystemRandom().getrandbits(32))
    print(f"MODELRAIL_KILL_SEED={seed}")
    async with place.trainer() as trainer:
        expected = await undisturbed(place, trainer)
    print(expected)
    for point in expected.points(points, random.Random(seed)):  # noqa: S311
        async with place.trainer() as trainer:
            job = await trainer.submit(SPEC, policy=POLICY)
            await until(partial(point.is_reached, job))
            at = f"{job.lines} lines, step {job.checkpointed_step}"
            await kill(point, place, trainer)
            if "service" not in point.victim:
                ended, log = await trainer.ended(job)
        if "service" in point.victim:
            async with place.trainer() as trainer:
                ended, log = await trainer.ended(job)
        resumed = [line for line in log if line.startswith("goes on from")]
        print(f"{point}: killed at {at}; {ended.attempt} attempts; {resumed}")
        assert ended.state == pb.TrainingJob.STATE_SUCCEEDED, ended.error.message
        assert await digest_of(place, ended) == expected.sha256
        assert place.workers() == []
    assert len(await place.versions("digits")) == points + 1
