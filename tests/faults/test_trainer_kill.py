"""The trainer as a real process, beside a real registry, killed where it hurts."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import psutil
import pytest

from modelrail.client.registry import AsyncRegistryClient
from modelrail.client.trainer import AsyncTrainerClient, RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.trainers import job_processes

Job = pb.TrainingJob
_START_SECONDS = 60.0

# The service itself, with a worker that stops in the middle until the test lets it go on.
SERVICE = """
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

WORKER = """
import os, signal, sys
from pathlib import Path
from onnx import TensorProto, helper
from modelrail_trainer import artifact, journal

directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
gate = directory.parent.parent.parent / "gate"


def figure(epoch):
    return journal.Metric(name="loss", value=0.5, split="train", epoch=epoch, runtime="pytorch")


with journal.JournalWriter(directory / "events.jsonl") as log:
    log.write(journal.PhaseEvent(journal.Phase.PREPARING))
    log.write(journal.PhaseEvent(journal.Phase.RUNNING))
    for epoch in (1, 2):
        log.write(journal.MetricsEvent(
            epoch=epoch, epochs=2, step=epoch, rows_per_second=1.0, metrics=(figure(epoch),)))
        if epoch == 1:
            gate.open("rb").read()  # until the test opens and closes the other end
    log.write(journal.PhaseEvent(journal.Phase.EXPORTING))
    shape = ["batch", 1]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "line",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    x, y = (artifact.TensorSpec(name=n, datatype="FP32", shape=("batch", 1)) for n in "xy")
    artifact.save_result(artifact.TrainingResult(
        files=(artifact.describe_file(directory, "model.onnx", "application/onnx"),),
        signature=artifact.Signature((x,), (y,)), metrics=(figure(0),),
        lineage=artifact.Lineage(dataset="line", dataset_sha256="0" * 64, spec_sha256="1" * 64,
            seed=7, packages={}),
        certificate=artifact.ExportCertificate(opset=20, absolute_tolerance=1e-4,
            relative_tolerance=1e-3, batch_sizes=(1,), outputs=(artifact.OutputParity("y", 0.0),),
            rows=10)), directory)
    log.write(journal.FinishedEvent())
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
class Running:
    process: asyncio.subprocess.Process
    client: AsyncTrainerClient

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await self.process.wait()


@dataclass
class Site:
    """A registry, and trainers that come and go on one data directory."""

    path: Path
    registry: AsyncRegistryClient
    real_worker: bool = False

    @asynccontextmanager
    async def trainer(self) -> AsyncIterator[Running]:
        program = [str(self.path / "service.py"), str(self.path / "worker.py")]
        if self.real_worker:
            program = ["-m", "modelrail_trainer"]
        address = f"unix:{self.path}/t.sock"
        async with (
            _service(
                *program,
                *("--grpc-address", address, "--data-dir", str(self.path / "trainer")),
                *("--registry", f"unix:{self.path}/r.sock", "--cancel-grace-seconds", "20"),
                *("--job-readable-paths", str(self.path / "gate")),
                address=address,
            ) as process,
            AsyncTrainerClient(address) as client,
        ):
            yield Running(process, client)

    def open_gate(self) -> None:
        """Lets the worker go on; blocks until one stands at the gate."""
        (self.path / "gate").open("wb").close()

    def workers(self) -> list[psutil.Process]:
        return job_processes(self.path)

    async def versions(self) -> list[str]:
        return [v.name async for v in self.registry.list_model_versions("models/line")]


@asynccontextmanager
async def _service(*program: str, address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, "--metrics-address", "127.0.0.1:0"
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


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "worker.py").write_text(WORKER)
    os.mkfifo(tmp_path / "gate")
    address = f"unix:{tmp_path}/r.sock"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            _service(
                *("-m", "modelrail_registry", "--grpc-address", address),
                *("--data-dir", str(tmp_path / "registry")),
                address=address,
            )
        )
        client = await stack.enter_async_context(AsyncRegistryClient(address))
        site = Site(tmp_path, client)
        yield site
        for worker in site.workers():
            worker.kill()


async def _until_first_epoch(client: AsyncTrainerClient, name: str) -> None:
    async for event in client.watch_job(name):
        if event.HasField("metric_report"):
            return
    raise AssertionError("the job ended before its first epoch")


async def _ended(client: AsyncTrainerClient, name: str) -> tuple[pb.TrainingJob, list[int]]:
    epochs = [
        event.metric_report.progress.epoch
        async for event in client.watch_job(name)
        if event.HasField("metric_report")
    ]
    return await client.get_job(name), epochs


async def test_a_killed_service_adopts_the_running_worker(site: Site) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await _until_first_epoch(trainer.client, name)
        (worker,) = site.workers()
        await trainer.end(signal.SIGKILL)
    assert site.workers() == [worker]
    async with site.trainer() as trainer:
        await asyncio.to_thread(site.open_gate)
        job, epochs = await _ended(trainer.client, name)
        assert await trainer.end(signal.SIGTERM) == 0
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1)
    assert epochs == [1, 2]
    assert await site.versions() == [job.model_version]
    assert site.workers() == []


async def test_an_adopted_process_is_ended_when_the_time_of_its_job_is_up(site: Site) -> None:
    async with site.trainer() as trainer:
        policy = RunPolicy(max_run_seconds=3600)
        name = (await trainer.client.create_job(SPEC, policy=policy)).name
        await _until_first_epoch(trainer.client, name)
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


async def test_a_result_that_was_finished_without_a_service_is_published(site: Site) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await _until_first_epoch(trainer.client, name)
        (worker,) = site.workers()
        await trainer.end(signal.SIGKILL)
    await asyncio.to_thread(site.open_gate)
    await asyncio.to_thread(psutil.wait_procs, [worker], 60)
    async with site.trainer() as trainer:
        job, epochs = await _ended(trainer.client, name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1)
    assert epochs == [1, 2]
    assert await site.versions() == [job.model_version]


async def test_a_worker_lost_with_the_service_runs_again(site: Site) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await _until_first_epoch(trainer.client, name)
        (worker,) = site.workers()
        await trainer.end(signal.SIGKILL)
    worker.kill()
    await asyncio.to_thread(psutil.wait_procs, [worker], 60)
    async with site.trainer() as trainer:
        await asyncio.to_thread(site.open_gate)
        job, _ = await _ended(trainer.client, name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2)
    assert await site.versions() == [job.model_version]


async def test_a_killed_worker_fails_its_job(site: Site) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await _until_first_epoch(trainer.client, name)
        (worker,) = site.workers()
        worker.kill()
        job, _ = await _ended(trainer.client, name)
    assert job.state == Job.STATE_FAILED
    assert job.error.reason == pb.JobError.REASON_PROCESS_DIED
    assert "SIGKILL" in job.error.message


async def test_an_adopted_worker_whose_journal_became_a_pipe_fails_and_is_ended(site: Site) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await _until_first_epoch(trainer.client, name)
        await trainer.end(signal.SIGKILL)
    (journal,) = site.path.glob("**/events.jsonl")
    journal.unlink()
    os.mkfifo(journal)
    async with site.trainer() as trainer:
        job, _ = await _ended(trainer.client, name)
        assert job.state == Job.STATE_FAILED
        assert "the journal cannot be read" in job.error.message
        assert site.workers() == []


async def test_sigterm_leaves_no_process_and_the_next_start_finishes_the_job(site: Site) -> None:
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(SPEC)).name
        await _until_first_epoch(trainer.client, name)
        assert await trainer.end(signal.SIGTERM) == 0
    assert site.workers() == []
    async with site.trainer() as trainer:
        await asyncio.to_thread(site.open_gate)
        job, _ = await _ended(trainer.client, name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2)
    assert await site.versions() == [job.model_version]


async def test_a_real_job_outlives_the_killed_service(site: Site) -> None:
    site.real_worker = True
    spec = pb.TrainingJobSpec()
    spec.CopyFrom(SPEC)
    spec.epochs = 2_000
    spec.log_every_epochs = 100
    async with site.trainer() as trainer:
        name = (await trainer.client.create_job(spec)).name
        await _until_first_epoch(trainer.client, name)
        await trainer.end(signal.SIGKILL)
    async with site.trainer() as trainer:
        job, epochs = await _ended(trainer.client, name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 1), job.error.message
    assert epochs[:2_000] == list(range(1, 2_001))
    assert await site.versions() == [job.model_version]
