"""The trainer under measurement, as a process of its own beside no registry."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from modelrail.client.trainer import AsyncTrainerClient
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.load.process import running

TRAINER = (sys.executable, "-m", "modelrail_trainer")
_POLL_SECONDS = 0.002
_WAIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class TrainerHost:
    """A running trainer.

    Attributes:
        client: Speaks with it.
        service: Its process; those of its jobs are below it.
        jobs: The folder of their folders.
    """

    client: AsyncTrainerClient
    service: psutil.Process
    jobs: Path

    def cpu_seconds(self) -> float:
        """Returns the processor time of the service alone, without its jobs."""
        times = self.service.cpu_times()
        return times.user + times.system

    def directory(self, job: pb.TrainingJob) -> Path:
        """Returns the folder of a job."""
        return self.jobs / job.name.removeprefix("trainingJobs/")


@asynccontextmanager
async def trainer(
    folder: Path, *flags: str, command: Sequence[str] = TRAINER
) -> AsyncIterator[TrainerHost]:
    """Runs a trainer for the length of the context.

    Args:
        folder: For its data.
        flags: More settings.
        command: What runs it.
    """
    given = [
        *command, "--data-dir", str(folder), "--grpc-address", "127.0.0.1:0",
        "--metrics-address", "127.0.0.1:0", "--registry", f"unix:{folder}/nobody.sock",
        "--cancel-grace-seconds", "1", *flags,
    ]  # fmt: skip
    async with (
        running(given, wait_ready=False) as host,
        AsyncTrainerClient(host.address, timeout_seconds=60.0) as client,
    ):
        yield TrainerHost(client, psutil.Process(host.pid), folder / "jobs")


async def when(holds: Callable[[], bool]) -> float:
    """Returns the moment at which something was first seen to hold, by `time.perf_counter`.

    Raises:
        TimeoutError: It never did.
    """
    async with asyncio.timeout(_WAIT_SECONDS):
        while not holds():  # noqa: ASYNC110
            # Another process brings it about; nothing else tells of it.
            await asyncio.sleep(_POLL_SECONDS)
    return time.perf_counter()


def digits(epochs: int, *, checkpoint_every_steps: int = 0) -> pb.TrainingJobSpec:
    """Returns a small job on the digits that come with the trainer."""
    return pb.TrainingJobSpec(
        dataset=pb.Dataset(bundled="digits"),
        split=pb.Split(validation_fraction=0.15, test_fraction=0.15, seed=1),
        model=pb.ModelSpec(mlp=pb.MlpModel(hidden_units=[64])),
        loss=pb.Loss(cross_entropy=pb.CrossEntropy()),
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=1e-4)),
        epochs=epochs,
        batch_size=32,
        log_every_epochs=100_000,
        publication=pb.Publication(model="digits"),
        checkpoint_every_steps=checkpoint_every_steps,
    )
