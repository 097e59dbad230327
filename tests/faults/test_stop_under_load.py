"""Each of the three services, told to stop in the middle of its work: row 18 of the table.

A call is accepted from the moment that the service has begun to handle it. Its own counters say at
its end how many those were; each of them must have reached its caller. Everybody else was refused
before anything happened and can call another replica: with UNAVAILABLE, or with CANCELLED where
gRPC had the call already and nobody to hand it to (grpc#41785), which modelrail's client repeats.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelrail.client.channel import open_channel, service_config
from modelrail.client.ended import errors_of
from modelrail.client.errors import CallCancelled, ModelrailError, Unavailable
from modelrail.oip.v2 import grpc_service_pb2 as oip
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail.registry.v1 import registry_pb2 as registry
from modelrail.registry.v1.registry_pb2_grpc import RegistryServiceStub
from modelrail.trainer.v1 import trainer_pb2 as trainer
from modelrail.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from tests.faults.models import counting, doubling, output, request_for

SECONDS = 60.0
"""Longest wait of a test for anything; no figure of speed."""
GRACE_SECONDS = 20.0
# Channels of one address share connections, that to an ended service too for a moment.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]

# The service itself. It leaves behind what it counted, and a job of the trainer has no end.
SCRIPT = """
import importlib, json, sys
from pathlib import Path
from modelrail_server.observability.metrics import MethodMetrics

methods, init = [], MethodMetrics.__init__

def noted(method, *labels):
    init(method, *labels)
    methods.append(method)

MethodMetrics.__init__ = noted
module = importlib.import_module(sys.argv[1] + ".__main__")
module.WORKER_COMMAND = (sys.executable, "-c", "import threading; threading.Event().wait()")
status = module.main(sys.argv[3:])
counts = {
    method.labels[1]: {"started": method.started} | {
        labels[-1]: buckets[-1] for labels, buckets, _ in method.read()
    }
    for method in methods
}
Path(sys.argv[2]).write_text(json.dumps(counts))
sys.exit(status)
"""


REPEATED = {entry["method"] for entry in service_config()["methodConfig"][0]["name"]}
"""What modelrail's client calls again by itself."""


class Load:
    """What became of all the calls."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.told_to_stop = False
        self.gone = asyncio.Event()

    async def until_answered(self, methods: Collection[str], more: int) -> None:
        """Waits for so many more answers of each of the methods."""
        goals = {name: self.answered[name] + more for name in methods}
        async with asyncio.timeout(SECONDS):
            while any(self.answered[name] < goal for name, goal in goals.items()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@dataclass
class Caller:
    """Closed loops on one channel: each calls again once it was answered, until all is over."""

    load: Load
    stub: Any
    repeats: bool
    """Whether the channel is that of modelrail's client."""

    async def call(self, name: str, request: Any) -> list[Any]:
        """Calls a method of any kind and returns the replies.

        Raises:
            ModelrailError: It was not answered.
        """
        replies: list[Any] = []
        call = getattr(self.stub, name)(request, timeout=SECONDS)
        try:
            async with errors_of(call):
                if hasattr(call, "__aiter__"):
                    async for reply in call:
                        replies.append(reply)  # noqa: PERF401 - what came before an error counts
                else:
                    replies.append(await call)
        except ModelrailError as error:
            self._failed(name, error)
            raise
        self.load.answered[name] += 1
        return replies

    def _failed(self, name: str, error: ModelrailError) -> None:
        refused: tuple[type[ModelrailError], ...] = (Unavailable, CallCancelled)
        if self.repeats and name in REPEATED:
            refused = (Unavailable,)
        counts = self.load.failed
        if self.load.told_to_stop and isinstance(error, refused):
            counts = self.load.refused
        counts[f"{name}: {type(error).__name__}"] += 1

    async def loop(self, once: Callable[[], Awaitable[None]]) -> None:
        while not self.load.gone.is_set():
            try:
                await once()
            except ModelrailError:
                await asyncio.sleep(0.01)


Once = Callable[[], Awaitable[None]]


@dataclass
class Kind:
    """One of the services, who calls it, and what it must remember of what it confirmed."""

    module: str
    stub: Callable[[grpc.aio.Channel], Any]
    loops: Callable[[Caller], Awaitable[Sequence[Once]]]
    forgotten: Callable[[Any], Awaitable[int]]
    """How many of the confirmed things a service does not know that was started again."""
    methods: Collection[str]
    """Methods whose calls end by themselves."""
    folder: Path

    def arguments(self) -> list[str]:
        if self.module == "modelrail_inference":
            models = self.folder / "models"
            for make in (doubling, counting):
                if not (models / make.__name__).exists():
                    make(models / make.__name__)
            return ["--model-repository", str(models), "--provider", "cpu", "--vouched"]
        if self.module == "modelrail_trainer":
            return ["--registry", f"unix:{self.folder}/nobody", "--max-queued-jobs", "100000"]
        return []


def inference(folder: Path) -> Kind:
    async def loops(caller: Caller) -> Sequence[Once]:
        async def quick() -> None:
            (reply,) = await caller.call(
                "ModelInfer", request_for("doubling", np.ones((1, 4), np.float32))
            )
            assert output(reply) == [[2.0] * 4]

        async def slow() -> None:
            (reply,) = await caller.call(
                "ModelInfer", request_for("counting", np.array(5_000, np.int64))
            )
            assert output(reply) == [5_000.0]

        async def index() -> None:
            await caller.call("RepositoryIndex", oip.RepositoryIndexRequest())

        # Of the slow ones some run and the others wait when the end comes.
        return [quick] * 8 + [slow] * 8 + [index] * 2

    async def forgotten(stub: Any) -> int:
        return 0

    methods = ("ModelInfer", "RepositoryIndex")
    return Kind("modelrail_inference", GRPCInferenceServiceStub, loops, forgotten, methods, folder)


async def missing(get: Any, requests: Sequence[Any]) -> int:
    """Counts the resources that are not found."""
    count = 0
    for request in requests:
        try:
            await get(request)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017
            count += 1
    return count


def model_registry(folder: Path) -> Kind:
    confirmed: list[str] = []
    chance = random.Random(18)  # noqa: S311

    def parts(data: bytes) -> Iterator[Any]:
        name = f"blobs/{hashlib.sha256(data).hexdigest()}"
        header = registry.UploadBlobHeader(name=name, size_bytes=len(data))
        yield registry.UploadBlobRequest(header=header)
        for offset in range(0, len(data), 1 << 16):
            chunk = registry.BlobChunk(offset_bytes=offset, data=data[offset : offset + (1 << 16)])
            yield registry.UploadBlobRequest(chunk=chunk)

    async def loops(caller: Caller) -> Sequence[Once]:
        async def publish() -> None:
            data = chance.randbytes(1 << 18)
            await caller.call("UploadBlob", parts(data))
            digest = hashlib.sha256(data).hexdigest()
            file = registry.File(path="weights.bin", sha256=digest, size_bytes=len(data))
            request = registry.CreateModelVersionRequest(
                parent="models/m", model_version=registry.ModelVersion(files=[file]),
                create_model=True, request_id=str(uuid.UUID(bytes=chance.randbytes(16), version=4)),
            )  # fmt: skip
            (version,) = await caller.call("CreateModelVersion", request)
            confirmed.append(version.name)

        async def read() -> None:
            name = confirmed[-1]
            (version,) = await caller.call(
                "GetModelVersion", registry.GetModelVersionRequest(name=name)
            )
            digest = version.files[0].sha256
            replies = await caller.call(
                "DownloadBlob", registry.DownloadBlobRequest(name=f"blobs/{digest}")
            )
            data = b"".join(reply.chunk.data for reply in replies)
            assert hashlib.sha256(data).hexdigest() == digest

        async def watch() -> None:
            await caller.call("WatchEvents", registry.WatchEventsRequest())

        await publish()
        return [publish] * 4 + [read] * 6 + [watch] * 2

    async def forgotten(stub: Any) -> int:
        print(len(confirmed), "versions were confirmed")
        wanted = [registry.GetModelVersionRequest(name=name) for name in confirmed]
        return await missing(stub.GetModelVersion, wanted)

    methods = ("UploadBlob", "CreateModelVersion", "GetModelVersion", "DownloadBlob")
    return Kind("modelrail_registry", RegistryServiceStub, loops, forgotten, methods, folder)


def job_trainer(folder: Path) -> Kind:
    confirmed: list[str] = []
    spec = trainer.TrainingJobSpec(
        dataset=trainer.Dataset(line=trainer.LineDataset(slope=0.5, intercept=1.0, points=100)),
        model=trainer.ModelSpec(linear=trainer.LinearModel()),
        loss=trainer.Loss(mse=trainer.MeanSquaredError()),
        optimizer=trainer.Optimizer(gradient_descent=trainer.GradientDescent(learning_rate=0.01)),
        epochs=2,
        publication=trainer.Publication(model="line"),
    )

    async def loops(caller: Caller) -> Sequence[Once]:
        async def create() -> None:
            request = trainer.CreateTrainingJobRequest(
                training_job=trainer.TrainingJob(spec=spec), request_id=str(uuid.uuid4())
            )
            (job,) = await caller.call("CreateTrainingJob", request)
            confirmed.append(job.name)

        async def read() -> None:
            request = trainer.GetTrainingJobRequest(name=confirmed[-1])
            await caller.call("GetTrainingJob", request)

        async def page() -> None:
            request = trainer.ListTrainingJobsRequest(page_size=10)
            await caller.call("ListTrainingJobs", request)

        async def watch() -> None:
            request = trainer.WatchTrainingJobRequest(name=confirmed[0])
            await caller.call("WatchTrainingJob", request)

        await create()
        return [create] * 4 + [read] * 4 + [page] * 2 + [watch] * 2

    async def forgotten(stub: Any) -> int:
        print(len(confirmed), "jobs were confirmed")
        wanted = [trainer.GetTrainingJobRequest(name=name) for name in confirmed]
        return await missing(stub.GetTrainingJob, wanted)

    methods = ("CreateTrainingJob", "GetTrainingJob", "ListTrainingJobs")
    return Kind("modelrail_trainer", TrainerServiceStub, loops, forgotten, methods, folder)


@pytest.fixture(params=[inference, model_registry, job_trainer])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    made: Kind = request.param(tmp_path)
    yield made
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "--job-directory" in command and any(str(tmp_path) in part for part in command):
            process.kill()


@asynccontextmanager
async def running(kind: Kind, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    address = f"unix:{kind.folder}/s"
    with (kind.folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SCRIPT, kind.module, str(kind.folder / "counts"),
            *kind.arguments(), *flags,
            *("--grpc-address", address, "--metrics-address", "127.0.0.1:0"),
            *("--data-dir", str(kind.folder / "data")),
            *("--shutdown-grace-seconds", str(GRACE_SECONDS)),
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        async with (
            asyncio.timeout(SECONDS),
            grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel,
        ):
            await channel.channel_ready()
            if kind.module == "modelrail_inference":
                stub: Any = GRPCInferenceServiceStub(channel)
                while not (await stub.ServerReady(oip.ServerReadyRequest())).ready:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def under_load(kind: Kind) -> AsyncIterator[Load]:
    """Callers, until the service that they call is gone."""
    load = Load()
    address = f"unix:{kind.folder}/s"
    async with (
        grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as plain,
        open_channel(address, options=OWN_CONNECTION) as repeating,
        asyncio.TaskGroup() as tasks,
    ):
        for channel in (plain, repeating):
            caller = Caller(load, kind.stub(channel), channel is repeating)
            for once in await kind.loops(caller):
                tasks.create_task(caller.loop(once))
        await load.until_answered(kind.methods, 5)
        yield load
        load.gone.set()


async def forgotten_by_the_next(kind: Kind) -> int:
    """How much of what was confirmed the next service does not know."""
    async with (
        running(kind) as process,
        grpc.aio.insecure_channel(f"unix:{kind.folder}/s", options=OWN_CONNECTION) as channel,
    ):
        missing = await kind.forgotten(kind.stub(channel))
        process.terminate()
        assert await process.wait() == 0
    return missing


async def test_a_stop_under_load_answers_every_call_that_was_accepted(kind: Kind) -> None:
    async with running(kind) as process:
        async with under_load(kind) as load:
            load.told_to_stop = True
            process.terminate()
            began = time.monotonic()
            async with asyncio.timeout(GRACE_SECONDS + SECONDS):
                assert await process.wait() == 0
            took = time.monotonic() - began
        print(f"ended after {took:.2f} s; answered {dict(load.answered)}")
        print("refused", dict(load.refused))
        assert took < GRACE_SECONDS
    assert not load.failed
    counts: dict[str, dict[str, int]] = json.loads((kind.folder / "counts").read_text())
    for method, answered in load.answered.items():
        assert counts[method] == {"started": answered, "OK": answered}, method
    assert load.refused, "nobody called after the end"
    assert await forgotten_by_the_next(kind) == 0


async def test_a_second_signal_ends_a_service_under_load_that_drains(kind: Kind) -> None:
    """Until then all goes on as before; after it all that was confirmed is still there."""
    async with running(kind, "--drain-delay-seconds", "3600") as process:
        async with (
            under_load(kind) as load,
            grpc.aio.insecure_channel(f"unix:{kind.folder}/s", options=OWN_CONNECTION) as c,
        ):
            stub: Any = health_pb2_grpc.HealthStub(c)
            health = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
            process.terminate()
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await load.until_answered(kind.methods, 5)
            assert not load.failed
            load.told_to_stop = True
            os.kill(process.pid, signal.SIGTERM)
            async with asyncio.timeout(SECONDS):
                assert await process.wait() == 128 + signal.SIGTERM
            health.cancel()
        assert not load.failed
    assert await forgotten_by_the_next(kind) == 0
