"""A trainer whose worker is a script of the test: what a job does is its display name."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from modelrail.client.trainer import AsyncTrainerClient
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.application import Runtime
from modelrail_server.server import start_server
from modelrail_trainer.__main__ import build_trainer
from modelrail_trainer.config import TrainerConfig
from tests.faults.gated import SPEC


@dataclass
class ScriptedTrainer:
    """A trainer that runs in the test's process, beside no registry."""

    client: AsyncTrainerClient

    async def run(self, behaviour: str) -> pb.TrainingJob:
        """Has a job done and returns it as it ended."""
        spec = pb.TrainingJobSpec()
        spec.CopyFrom(SPEC)
        spec.display_name = behaviour
        name = (await self.client.create_job(spec)).name
        async for _ in self.client.watch_job(name):
            pass
        return await self.client.get_job(name)


@asynccontextmanager
async def scripted_trainer(
    path: Path, worker: str, **settings: int
) -> AsyncIterator[ScriptedTrainer]:
    """Runs a trainer for the length of the context.

    Args:
        path: An empty folder.
        worker: The program of its jobs.
        settings: Of the trainer.
    """
    (path / "worker.py").write_text(worker)
    config = TrainerConfig(
        grpc_address=f"unix:{path}/t.sock",
        data_dir=path / "data",
        registry=f"unix:{path}/nobody.sock",
        **settings,  # type: ignore[arg-type]
    )
    runtime = Runtime("trainer")
    command = (sys.executable, str(path / "worker.py"))
    async with build_trainer(
        config, runtime, worker_command=command, environ=os.environ
    ) as application:
        server, address = await start_server(application, config, runtime)
        try:
            async with AsyncTrainerClient(address) as client:
                yield ScriptedTrainer(client)
        finally:
            runtime.stopping.set()
            await server.stop(None)
