"""A trainer over gRPC: its worker follows a script, and its registry can misbehave."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import psutil

from modelrail.client.trainer import AsyncTrainerClient
from modelrail.registry.v1 import registry_pb2, registry_pb2_grpc
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail.trainer.v1 import trainer_pb2_grpc
from modelrail_server import errors
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ServerConfig
from modelrail_server.context import Context
from modelrail_server.policy import Permission
from modelrail_server.serve import start_server
from modelrail_trainer.__main__ import build_trainer
from modelrail_trainer.config import TrainerConfig

Job = pb.TrainingJob

# What the worker does is written in the display name: `step step …`.
REAL_WORKER = 'import runpy\nrunpy.run_module("modelrail_trainer.worker", run_name="__main__")\n'

WORKER = """
import os, signal, sys
from pathlib import Path
from modelrail.trainer.v1 import trainer_pb2
from modelrail_trainer.handover import artifact
from modelrail_trainer.handover import journal
from modelrail_trainer.handover import verdict

directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
if "--second-look" in sys.argv:  # other tests really look
    files = artifact.load_result(directory).files
    seen = tuple(verdict.SeenFile(file.path, file.sha256) for file in files)
    verdict.save_verdict(verdict.Verdict(files=seen, outputs=(), rows=1), directory)
    sys.exit()
spec = trainer_pb2.TrainingJobSpec.FromString((directory / "spec.binpb").read_bytes())
loss = journal.Metric(name="loss", value=0.5, split="train", epoch=1, runtime="pytorch")
accuracy = journal.Metric(name="accuracy", value=0.98, split="test", epoch=0, runtime="onnxruntime")


def save():
    (directory / "model.onnx").write_bytes(b"a model " * 1000)
    tensor = artifact.TensorSpec(name="x", datatype="FP32", shape=("batch", 1))
    artifact.save_result(
        artifact.TrainingResult(
            files=(artifact.describe_file(directory, "model.onnx", "application/onnx"),),
            signature=artifact.Signature((tensor,), (tensor,)),
            metrics=(accuracy,),
            lineage=artifact.Lineage(
                dataset="line", dataset_sha256="0" * 64, spec_sha256="1" * 64, seed=7,
                packages={"torch": "2"},
            ),
            certificate=artifact.ExportCertificate(
                opset=20, absolute_tolerance=1e-4, relative_tolerance=1e-3, batch_sizes=(1, 2, 7),
                outputs=(artifact.OutputParity("x", 0.0),), rows=10,
            ),
        ),
        directory,
    )


with journal.JournalWriter(directory / "events.jsonl") as log:
    for step in spec.display_name.split():
        match step:
            case "preparing" | "running" | "exporting":
                log.write(journal.PhaseEvent(journal.Phase(step)))
            case "epoch":
                log.write(journal.MetricsEvent(
                    epoch=1, epochs=2, step=40, rows_per_second=9.5, metrics=(loss,)))
            case "log":
                log.log("hello")
            case "print":
                print("a line of\\t\\x1b[1mPython\\x1b[0m", flush=True)
                os.write(2, b"from /var/secret/place.so: half a ")
            case "environment":
                log.log(" ".join(sorted(os.environ)))
            case "nan":
                log.write(journal.FailedEvent(journal.FailureReason.NAN_LOSS, "loss is nan"))
            case "model":
                (directory / "model.onnx").write_bytes(b"a model that fails at the gate")
            case "save":
                save()
            case "tamper":
                (directory / "model.onnx").write_bytes(b"another model")
            case "finished":
                log.write(journal.FinishedEvent())
            case "garbage":
                with (directory / "events.jsonl").open("ab") as file:
                    file.write(b"no event\\n")
            case "stubborn":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "child":
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    while True:
                        signal.pause()
            case "wait":
                log.log("waiting")
                while True:
                    signal.pause()
            case "pause":
                signal.pause()
            case "crash":
                raise RuntimeError("the roof is on fire")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die_once":
                # What stays from one attempt to the next.
                died = directory / "checkpoints" / "died"
                if not died.exists():
                    died.parent.mkdir()
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "gate":
                log.log("at the gate")
                if not (directory.parent.parent / "open").exists():
                    signal.pause()
"""
SUCCESS = "preparing running epoch exporting save finished"


def line_spec(script: str = SUCCESS, *, alias: str = "production") -> pb.TrainingJobSpec:
    return pb.TrainingJobSpec(
        display_name=script,
        dataset=pb.Dataset(line=pb.LineDataset(slope=0.5, intercept=1.0, points=100)),
        model=pb.ModelSpec(linear=pb.LinearModel()),
        loss=pb.Loss(mse=pb.MeanSquaredError()),
        optimizer=pb.Optimizer(gradient_descent=pb.GradientDescent(learning_rate=0.01)),
        epochs=2,
        publication=pb.Publication(model="line", alias=alias, description="a line"),
    )


@dataclass
class ScriptedRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Keeps what is published, and raises what the test put into `faults` first."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, registry_pb2.ModelVersion] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    # Raised by CreateModelVersion, before or after it took effect.
    faults: list[Exception] = field(default_factory=list)
    faults_after: list[Exception] = field(default_factory=list)
    uploading: asyncio.Event = field(default_factory=asyncio.Event)
    hold_uploads: asyncio.Event | None = None

    async def GetModel(  # noqa: N802 - the name is the protocol's
        self, request: registry_pb2.GetModelRequest, context: Context
    ) -> registry_pb2.Model:
        raise errors.NotFound("no such model")

    async def GetBlob(  # noqa: N802 - the name is the protocol's
        self, request: registry_pb2.GetBlobRequest, context: Context
    ) -> registry_pb2.Blob:
        content = self.blobs.get(request.name)
        if content is None:
            raise errors.NotFound("no such blob")
        size = len(content)
        return registry_pb2.Blob(
            name=request.name, size_bytes=size, committed_size_bytes=size, complete=True
        )

    async def UploadBlob(  # noqa: N802 - the name is the protocol's
        self, requests: AsyncIterator[registry_pb2.UploadBlobRequest], context: Context
    ) -> registry_pb2.Blob:
        self.uploading.set()
        if self.hold_uploads is not None:
            await self.hold_uploads.wait()
        name, content = "", b""
        async for request in requests:
            name = name or request.header.name
            content += request.chunk.data
        self.blobs[name] = content
        size = len(content)
        return registry_pb2.Blob(
            name=name, size_bytes=size, committed_size_bytes=size, complete=True
        )

    async def CreateModelVersion(  # noqa: N802 - the name is the protocol's
        self, request: registry_pb2.CreateModelVersionRequest, context: Context
    ) -> registry_pb2.ModelVersion:
        if self.faults:
            raise self.faults.pop(0)
        assert request.create_model
        assert uuid.UUID(request.request_id).version == 4
        if request.request_id not in self.versions:
            version = registry_pb2.ModelVersion()
            version.CopyFrom(request.model_version)
            version.name = f"{request.parent}/versions/{len(self.versions) + 1}"
            self.versions[request.request_id] = version
        if self.faults_after:
            raise self.faults_after.pop(0)
        return self.versions[request.request_id]

    async def ListModelVersions(  # noqa: N802 - the name is the protocol's
        self, request: registry_pb2.ListModelVersionsRequest, context: Context
    ) -> registry_pb2.ListModelVersionsResponse:
        newest_first = reversed(self.versions.values())
        return registry_pb2.ListModelVersionsResponse(model_versions=newest_first)

    async def UpdateModelAlias(  # noqa: N802 - the name is the protocol's
        self, request: registry_pb2.UpdateModelAliasRequest, context: Context
    ) -> registry_pb2.ModelAlias:
        assert request.allow_missing
        self.aliases[request.model_alias.name] = request.model_alias.model_version
        return request.model_alias


@asynccontextmanager
async def serving_registry(registry: ScriptedRegistry, address: str) -> AsyncIterator[str]:
    service = "modelrail.registry.v1.RegistryService"
    methods = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].methods
    application = Application(
        register=lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(
            registry, server
        ),
        services=(service,),
        policy={f"/{service}/{method.name}": Permission.WRITE for method in methods},
    )
    config = ServerConfig(grpc_address=address)
    server, _ = await start_server(application, config, Runtime("registry"))
    try:
        yield address
    finally:
        await server.stop(None)


@dataclass
class TrainerUnderTest:
    client: AsyncTrainerClient
    stub: trainer_pb2_grpc.TrainerServiceStub
    runtime: Runtime
    data_dir: Path

    async def create(self, script: str = SUCCESS, *, alias: str = "production") -> pb.TrainingJob:
        return await self.client.create_job(line_spec(script, alias=alias))

    async def events(self, name: str) -> list[pb.TrainingJobEvent]:
        return [event async for event in self.client.watch_job(name)]

    async def ended(self, name: str) -> pb.TrainingJob:
        await self.events(name)
        return await self.client.get_job(name)

    async def until(self, name: str, is_it: Callable[[pb.TrainingJobEvent], bool]) -> None:
        async for event in self.client.watch_job(name):
            if is_it(event):
                return
        raise AssertionError("the job ended without that event")

    async def until_line(self, name: str, text: str) -> None:
        await self.until(name, lambda event: text in event.log_line.text)

    async def until_state(self, name: str, state: pb.TrainingJob.State) -> None:
        await self.until(name, lambda event: event.state_change.new_state == state)

    def directory(self, name: str) -> Path:
        return self.data_dir / "jobs" / name.removeprefix("trainingJobs/")


@dataclass
class House:
    """Starts trainers on one data directory, beside one registry."""

    tmp_path: Path
    registry: ScriptedRegistry
    worker: str = WORKER
    # The worker program; the scripted one when there is none.
    command: tuple[str, ...] = ()

    @property
    def registry_address(self) -> str:
        return f"unix:{self.tmp_path}/r.sock"

    @asynccontextmanager
    async def trainer(
        self, **settings: int | float | tuple[str, ...]
    ) -> AsyncIterator[TrainerUnderTest]:
        worker = self.tmp_path / "worker.py"
        worker.write_text(self.worker)
        config = TrainerConfig(
            grpc_address=f"unix:{self.tmp_path}/t.sock",
            data_dir=self.tmp_path / "data",
            registry=self.registry_address,
            **{"cancel_grace_seconds": 5.0, **settings},  # type: ignore[arg-type]
        )
        runtime = Runtime("trainer")
        async with AsyncExitStack() as stack:
            environ = {**os.environ, "AWS_SECRET_ACCESS_KEY": "secret"}
            application = await stack.enter_async_context(
                build_trainer(
                    config,
                    runtime,
                    worker_command=self.command or (sys.executable, str(worker)),
                    environ=environ,
                )
            )
            server, address = await start_server(application, config, runtime)
            stack.push_async_callback(server.stop, None)
            stack.callback(runtime.stopping.set)
            client = await stack.enter_async_context(AsyncTrainerClient(address))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            yield TrainerUnderTest(client, stub, runtime, config.data_dir)


def states(events: list[pb.TrainingJobEvent]) -> list[str]:
    return [
        Job.State.Name(event.state_change.new_state).removeprefix("STATE_")
        for event in events
        if event.HasField("state_change")
    ]


def processes_of(trainer: TrainerUnderTest) -> list[int]:
    mark = str(trainer.data_dir)
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if any(mark in argument for argument in process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


async def cli(house: House, *arguments: str) -> tuple[int, str]:
    """Runs `modelrail …`; returns its exit status and all that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelrail.cli", *arguments),
        *("--trainer", f"unix:{house.tmp_path}/t.sock"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()
