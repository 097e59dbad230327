"""Trainers beside a registry, whose workers stop in the middle until the test lets them go on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from modelrail.client.trainer import AsyncTrainerClient
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.trainers import WAIT_SECONDS, Running, Site, site
from tests.gated_worker import gated_worker, open_gate

# The service itself, with a worker of the test's.
_SERVICE = """
import os, sys
from functools import partial
from modelrail_server.config import load_config
from modelrail_server.serve import run
from modelrail_trainer.__main__ import build_trainer
from modelrail_trainer.config import TrainerConfig

worker, *argv = sys.argv[1:]
config = load_config(TrainerConfig, service="trainer", argv=argv)
build = partial(
    build_trainer, config, worker_command=(sys.executable, worker), environ=dict(os.environ))
sys.exit(run(config, service="trainer", build=build))
"""

SPEC = pb.TrainingJobSpec(
    dataset=pb.Dataset(line=pb.LineDataset(slope=0.5, intercept=1.0, points=100)),
    model=pb.ModelSpec(linear=pb.LinearModel()),
    loss=pb.Loss(mse=pb.MeanSquaredError()),
    optimizer=pb.Optimizer(gradient_descent=pb.GradientDescent(learning_rate=0.01)),
    epochs=2,
    publication=pb.Publication(model="line", alias="production"),
)


@dataclass
class GatedSite:
    """A site whose trainers run gated workers, each trainer's at a gate of its own.

    Attributes:
        site: Registry and folder.
        flags: Of every trainer.
    """

    site: Site
    flags: Sequence[str] = ()

    @property
    def path(self) -> Path:
        """The folder of everything."""
        return self.site.path

    def trainer(self, name: str = "trainer") -> AbstractAsyncContextManager[Running]:
        """Runs a trainer for the length of the context."""
        service, worker = self.path / "service.py", self.path / f"worker-{name}.py"
        service.write_text(_SERVICE)
        worker.write_text(gated_worker(self._gate(name)))
        if not self._gate(name).exists():
            os.mkfifo(self._gate(name))
        return self.site.trainer(
            *("--job-readable-paths", str(self._gate(name)), *self.flags),
            name=name,
            program=(str(service), str(worker)),
        )

    async def open_gate(self, name: str = "trainer") -> None:
        """Lets a trainer's worker go on, once it stands at the gate."""
        await asyncio.to_thread(open_gate, self._gate(name))

    def workers(self, name: str = "trainer") -> list[psutil.Process]:
        """Returns the job processes of a trainer that live."""
        return self.site.workers(name)

    def told_apart(self, one: Running, two: Running) -> tuple[Running, Running]:
        """Returns the trainer that the only job belongs to, and the other one."""
        return (one, two) if self.workers(one.name) else (two, one)

    async def versions(self) -> list[str]:
        """Returns the name of every version that was published."""
        return [version.name for version in await self.site.versions("line")]

    def _gate(self, name: str) -> Path:
        return self.path / f"gate-{name}"


@asynccontextmanager
async def gated_site(path: Path, *flags: str) -> AsyncIterator[GatedSite]:
    """Runs a registry for the length of the context, and leaves no process behind."""
    async with site(path) as found:
        yield GatedSite(found, flags)


def is_report(event: pb.TrainingJobEvent) -> bool:
    """Whether an event tells of an epoch."""
    return event.HasField("metric_report")


async def until_event(
    client: AsyncTrainerClient,
    name: str,
    is_it: Callable[[pb.TrainingJobEvent], bool] = is_report,
) -> None:
    """Returns when a job has told of something, its first epoch unless something else is meant."""
    async with asyncio.timeout(WAIT_SECONDS):
        async for event in client.watch_job(name):
            if is_it(event):
                return
    raise AssertionError("the job ended before the event")
