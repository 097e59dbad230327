"""A disk that is full while a job trains or exports, and has room again later."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors

from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.trainers import Job, Running, Site, site, until

_DISK_BYTES = 16 << 20
_LESS_THAN_A_CHECKPOINT, _LESS_THAN_A_MODEL = 1 << 20, 192 << 10
"""Room that is left for lines of the journal."""
# A file system of its own, which goes with the process.
_MOUNT = f'mount -t tmpfs -o size={_DISK_BYTES} none "$0" && exec "$@"'
_HAS_MOUNTS = not subprocess.run(
    ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
).returncode

pytestmark = pytest.mark.skipif(
    not _HAS_MOUNTS, reason="needs a file system of its own: `unshare -rm` may not mount here"
)


def spec(epochs: int, checkpoint_every_steps: int) -> pb.TrainingJobSpec:
    """A job whose checkpoints take 1.4 MB and whose model takes 0.35 MB."""
    return pb.TrainingJobSpec(
        dataset=pb.Dataset(bundled="digits"),
        split=pb.Split(validation_fraction=0.15, test_fraction=0.15, seed=1),
        model=pb.ModelSpec(mlp=pb.MlpModel(hidden_units=[256, 256])),
        loss=pb.Loss(cross_entropy=pb.CrossEntropy()),
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=1e-4)),
        epochs=epochs,
        batch_size=64,
        checkpoint_every_steps=checkpoint_every_steps,
        publication=pb.Publication(model="digits"),
    )


@dataclass
class Disk:
    """The trainer's disk, as the trainer sees it."""

    path: Path

    def fill(self, left_bytes: int) -> None:
        """Leaves so much room, or what there is if that is less."""
        usage = os.statvfs(self.path)
        free = usage.f_bavail * usage.f_frsize
        if free <= left_bytes:
            return
        # Others write meanwhile, and may be faster.
        with (self.path / f"filler-{uuid.uuid4().hex}").open("wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, free - left_bytes)

    def make_room(self) -> None:
        for filler in self.path.glob("filler-*"):
            filler.unlink()


@asynccontextmanager
async def on_small_disk(place: Site) -> AsyncIterator[tuple[Running, Disk]]:
    jobs = place.path / "trainer" / "jobs"
    jobs.mkdir(parents=True)
    async with place.trainer(wrapper=("unshare", "-rm", "sh", "-c", _MOUNT, str(jobs))) as trainer:
        seen = Path(f"/proc/{trainer.process.pid}/root{jobs}")
        yield replace(trainer, jobs=seen), Disk(seen)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        yield found


def newest_checkpoint(job: Job) -> tuple[int, list[str]]:
    """Returns the step of the newest checkpoint and the tensors that are read from it."""
    step = job.checkpointed_step
    path = job.directory / "checkpoints" / f"step-{step:012d}.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        return step, [name for name in file.keys() if file.get_tensor(name) is not None]  # noqa: SIM118


async def test_a_full_disk_keeps_the_checkpoint_before_and_the_job_goes_on_from_it(
    place: Site,
) -> None:
    async with on_small_disk(place) as (trainer, disk):
        job = await trainer.submit(spec(200, 10), policy=RunPolicy(max_retries=1))
        await until(lambda: job.checkpointed_step >= 50)
        journal = job.directory / "events.jsonl"

        def is_refused() -> bool:
            # Again and again: an older checkpoint that is removed makes room for a new one.
            disk.fill(_LESS_THAN_A_CHECKPOINT)
            return b"no checkpoint after step" in journal.read_bytes()

        await until(is_refused)
        step, tensors = newest_checkpoint(job)
        assert "random.order" in tensors
        (worker,) = place.workers()
        worker.kill()
        await until(lambda: place.workers() not in ([], [worker]))
        disk.make_room()
        ended, log = await trainer.ended(job)
        assert await trainer.end(signal.SIGTERM) == 0
    assert (ended.state, ended.attempt) == (pb.TrainingJob.STATE_SUCCEEDED, 2), ended.error.message
    (refused, *_) = [line for line in log if line.startswith("no checkpoint after step")]
    assert "No space left on device" in refused
    assert "have room made on the trainer's disk" in refused
    assert any(line.startswith(f"goes on from the checkpoint after step {step},") for line in log)


async def test_an_export_on_a_full_disk_fails_and_a_clone_succeeds_when_there_is_room(
    place: Site,
) -> None:
    async with on_small_disk(place) as (trainer, disk):
        job = await trainer.submit(spec(20, 0))
        await until(lambda: job.directory.exists() and bool(place.workers()))
        disk.fill(_LESS_THAN_A_MODEL)
        failed, _ = await trainer.ended(job)
        assert failed.state == pb.TrainingJob.STATE_FAILED
        assert failed.error.reason == pb.JobError.REASON_DISK_FULL
        assert "the trainer's disk is full" in failed.error.message
        assert "have room made there, then clone the job" in failed.error.message
        assert await place.versions("digits") == []
        disk.make_room()
        clone = await trainer.client.clone_job(job.name)
        ended, _ = await trainer.ended(Job(clone.name, job.directory))
    assert ended.state == pb.TrainingJob.STATE_SUCCEEDED, ended.error.message
    assert [v.name for v in await place.versions("digits")] == [ended.model_version]


async def test_an_export_on_a_full_disk_is_tried_again_and_succeeds_when_there_is_room(
    place: Site,
) -> None:
    async with on_small_disk(place) as (trainer, disk):
        job = await trainer.submit(spec(20, 0), policy=RunPolicy(max_retries=1))
        await until(lambda: job.directory.exists() and bool(place.workers()))
        (worker,) = place.workers()
        disk.fill(_LESS_THAN_A_MODEL)
        await until(lambda: worker not in place.workers())
        disk.make_room()
        ended, _ = await trainer.ended(job)
    assert (ended.state, ended.attempt) == (pb.TrainingJob.STATE_SUCCEEDED, 2), ended.error.message
    assert [v.name for v in await place.versions("digits")] == [ended.model_version]
