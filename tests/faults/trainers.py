"""A registry, and trainers with their real workers that come and go on one data directory."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import psutil

from modelrail.client.errors import NotFound
from modelrail.client.registry import AsyncRegistryClient
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.registry.v1 import registry_pb2
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import JOURNAL_NAME
from tests.job_processes import job_processes

_START_SECONDS = 60.0
WAIT_SECONDS = 120.0
"""Longest wait of a test for anything; no figure of speed."""


@dataclass(frozen=True, slots=True)
class Job:
    """What can be seen of a job from outside of the trainer."""

    name: str
    directory: Path

    @property
    def lines(self) -> int:
        """Lines of the journal of the present attempt."""
        try:
            return (self.directory / JOURNAL_NAME).read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    @property
    def checkpointed_step(self) -> int:
        """The step after which the newest checkpoint was written; 0 for none."""
        names = [path.stem for path in self.directory.glob("checkpoints/step-*.safetensors")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)


@dataclass
class Running:
    """A trainer that runs."""

    process: asyncio.subprocess.Process
    client: AsyncTrainerClient
    jobs: Path

    @property
    def name(self) -> str:
        """Name of the data directory."""
        return self.jobs.parent.name

    async def submit(self, spec: pb.TrainingJobSpec, **policy: object) -> Job:
        """Queues a job."""
        name = (await self.client.create_job(spec, **policy)).name  # type: ignore[arg-type]
        return Job(name, self.jobs / name.removeprefix("trainingJobs/"))

    async def end(self, number: signal.Signals) -> int:
        """Signals the service and returns its exit status."""
        self.process.send_signal(number)
        return await self.process.wait()

    async def ended(self, job: Job) -> tuple[pb.TrainingJob, list[str]]:
        """Returns a job that has ended, and the lines of its log."""
        async with asyncio.timeout(WAIT_SECONDS):
            lines = [
                event.log_line.text
                async for event in self.client.watch_job(job.name)
                if event.HasField("log_line")
            ]
            return await self.client.get_job(job.name), lines


@dataclass
class Site:
    """A registry, and the folder of everything."""

    path: Path
    registry: AsyncRegistryClient

    @asynccontextmanager
    async def trainer(
        self,
        *arguments: str,
        name: str = "trainer",
        program: Sequence[str] = ("-m", "modelrail_trainer"),
        wrapper: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Running]:
        """Runs a trainer for the length of the context.

        Args:
            arguments: More flags.
            name: Of its data directory; trainers of two names run side by side.
            program: What Python runs.
            wrapper: A command that runs the service, as `unshare` does.
            environ: Variables beside those of the test.
        """
        data = self.path / name
        address = f"unix:{self.path}/{name}.sock"
        async with (
            _service(
                *wrapper,
                *(sys.executable, *program),
                *("--grpc-address", address, "--data-dir", str(data)),
                *("--registry", f"unix:{self.path}/r.sock", "--cancel-grace-seconds", "20"),
                *arguments,
                address=address,
                environ=environ,
            ) as process,
            AsyncTrainerClient(address) as client,
        ):
            yield Running(process, client, data / "jobs")

    def workers(self, name: str = "trainer") -> list[psutil.Process]:
        """Returns the job processes of a trainer that live, without their guards."""
        return job_processes(self.path / name / "jobs")

    def kill_workers(self) -> None:
        """Kills the job processes of all trainers."""
        for jobs in self.path.glob("*/jobs"):
            for worker in self.workers(jobs.parent.name):
                worker.kill()

    async def versions(self, model: str) -> list[registry_pb2.ModelVersion]:
        """Returns every version of a model; a model that nobody has made yet has none."""
        try:
            return [v async for v in self.registry.list_model_versions(f"models/{model}")]
        except NotFound:
            return []


@asynccontextmanager
async def site(path: Path) -> AsyncIterator[Site]:
    """Runs a registry for the length of the context, and leaves no process behind."""
    address = f"unix:{path}/r.sock"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            _service(
                *(sys.executable, "-m", "modelrail_registry", "--grpc-address", address),
                *("--data-dir", str(path / "registry")),
                address=address,
            )
        )
        found = Site(path, await stack.enter_async_context(AsyncRegistryClient(address)))
        try:
            yield found
        finally:
            found.kill_workers()


async def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds that nobody tells of."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@asynccontextmanager
async def _service(
    *command: str, address: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command, "--metrics-address", "127.0.0.1:0", env={**os.environ, **(environ or {})}
    )
    try:
        # A connection of its own: that to a killed service of this address may still look ready.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with (
            grpc.aio.insecure_channel(address, options=options) as channel,
            asyncio.timeout(_START_SECONDS),
        ):
            await channel.channel_ready()
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
