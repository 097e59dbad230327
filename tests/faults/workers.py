"""`modelrail-inference --workers K` as processes: what a test may do to them and see of them."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail.tensor import to_raw
from tests.faults.models import counting_step

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SECONDS = 30
ONE = np.array([1], np.float32)


def save(path: Path, nodes: list[Any], **initializers: onnx.TensorProto) -> Path:
    """Saves a model from x to y; the type of x is that which its first node takes."""
    scalar = nodes[0].op_type == "Loop"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", INT64 if scalar else FLOAT, [] if scalar else ["n"])],
        [helper.make_tensor_value_info("y", FLOAT, [1] if scalar else ["n"])],
        list(initializers.values()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def same(path: Path) -> Path:
    """y = x."""
    return save(path, [helper.make_node("Identity", ["x"], ["y"])])


def counting(path: Path) -> Path:
    """Counts to the number given, one loop step after the other: as slow as the caller wants."""
    return save(
        path,
        [helper.make_node("Loop", ["x", "yes", "zero"], ["y"], body=counting_step())],
        yes=helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        zero=helper.make_tensor("zero", FLOAT, [1], [0.0]),
    )


class Server:
    """A supervisor, its workers, and what they say."""

    def __init__(self, process: asyncio.subprocess.Process, address_file: Path) -> None:
        self.process = process
        self.address_file = address_file
        self.stderr = ""
        self.seen = psutil.Process(process.pid)
        self._events: list[dict[str, Any]] = []
        self._said = asyncio.Condition()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr
        async for line in self.process.stderr:
            self.stderr += line.decode()
            with suppress(ValueError):
                self._events.append(json.loads(line))
            async with self._said:
                self._said.notify_all()
        async with self._said:
            self._said.notify_all()

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        return [e for e in self._events if fields.items() <= e.items() and e["event"] == name]

    async def until(self, name: str, *, times: int = 1, **fields: Any) -> dict[str, Any]:
        """Waits until something was said so often."""
        async with asyncio.timeout(SECONDS), self._said:
            await self._said.wait_for(
                lambda: len(self.events(name, **fields)) >= times or self.reading.done()
            )
        found = self.events(name, **fields)
        assert len(found) >= times, self.stderr
        return found[times - 1]

    async def addresses(self) -> dict[str, Any]:
        await self.until("serving")
        content: dict[str, Any] = json.loads(self.address_file.read_text())
        return content

    async def pid(self, worker: int) -> int:
        await self.until("worker serves", worker=worker)
        return int(self.events("worker serves", worker=worker)[-1]["pid"])

    async def spare(self, *, times: int = 1) -> psutil.Process:
        """The process that waits for a seat; the second one with `times=2`, and so on."""
        return psutil.Process((await self.until("spare ready", times=times))["pid"])

    def processes(self) -> list[psutil.Process]:
        return self.seen.children(recursive=True)

    async def metrics(self) -> dict[str, float]:
        """The samples, by name and labels."""
        url = f"http://{(await self.addresses())['metrics_address']}/metrics"

        def fetch() -> str:
            with urllib.request.urlopen(url, timeout=10) as response:
                return str(response.read().decode())

        lines = (await asyncio.to_thread(fetch)).splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        assert len({key for key, _ in pairs}) == len(pairs), "a sample is there twice"
        return {key: float(value) for key, value in pairs}

    async def end(self) -> int:
        async with asyncio.timeout(SECONDS):
            await self.reading
            return await self.process.wait()


Start = Callable[..., Awaitable[Server]]


def models_in(tmp_path: Path) -> Path:
    """Three models: two that answer what they are asked, and one that counts."""
    folder = tmp_path / "models"
    for name in ("same", "other"):
        same(folder / name / "1" / "model.onnx")
    counting(folder / "counting" / "1" / "model.onnx")
    return folder


@asynccontextmanager
async def servers_in(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts servers that end with the context."""
    servers: list[Server] = []

    async def begin(*arguments: object, workers: int = 2) -> Server:
        address_file = tmp_path / "run" / "address.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "modelrail_inference", f"--workers={workers}",
            "--grpc-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0", "--provider=cpu",
            "--vouched", f"--data-dir={tmp_path}/data", f"--address-file={address_file}",
            *map(str, arguments),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        servers.append(Server(process, address_file))
        return servers[-1]

    yield begin
    for server in servers:
        with suppress(ProcessLookupError):
            server.process.kill()
        await server.process.wait()
        # They end by themselves; where that fails, the test has failed, and nothing may stay.
        for event in [*server.events("worker started"), *server.events("spare ready")]:
            with suppress(psutil.NoSuchProcess):
                worker = psutil.Process(event["pid"])
                if "modelrail_inference" in worker.cmdline():
                    worker.kill()
        await server.reading
        # Lets the pipes' transports close before the loop does.
        server.process._transport.close()  # type: ignore[attr-defined]


def request_for(model: str, x: Any) -> pb.ModelInferRequest:
    array = np.asarray(x)
    datatype = "INT64" if array.dtype == np.int64 else "FP32"
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    request.raw_input_contents.append(to_raw(array, datatype))
    return request


def channel_of(address: str, stack: AsyncExitStack) -> grpc.aio.Channel:
    """A connection of its own, which the kernel gives to either worker."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(address, options=options)
    stack.push_async_callback(channel.close)
    return channel


def stub_of(address: str, stack: AsyncExitStack) -> Any:
    """A stub on a connection of its own."""
    return GRPCInferenceServiceStub(channel_of(address, stack))


async def channel_to(server: Server, number: int, stack: AsyncExitStack) -> grpc.aio.Channel:
    """A connection with one of the workers."""
    address = (await server.addresses())["grpc_address"]
    worker = psutil.Process(await server.pid(number))

    def connections() -> int:
        found = worker.net_connections("tcp")
        return sum(connection.status == psutil.CONN_ESTABLISHED for connection in found)

    for _ in range(64):
        before = connections()
        channel = channel_of(address, stack)
        await GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=SECONDS)
        if connections() > before:
            return channel
    raise AssertionError("all connections went to the other worker")


async def stubs_of_both(server: Server, stack: AsyncExitStack) -> list[Any]:
    """Stubs of which some are connected with each worker."""
    address = (await server.addresses())["grpc_address"]
    pids = {await server.pid(0), await server.pid(1)}
    stubs: list[Any] = []
    connected: Counter[int] = Counter()
    while set(connected) != pids or len(stubs) < 8:
        assert len(stubs) < 64, "all connections went to one worker"
        stubs.append(stub_of(address, stack))
        await stubs[-1].ServerLive(pb.ServerLiveRequest(), timeout=SECONDS)
        connected = Counter(
            pid
            for pid in pids
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED
        )
    return stubs


async def ready(stub: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not (await stub.ServerReady(pb.ServerReadyRequest())).ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def counted(metrics: dict[str, float], name: str, model: str) -> float:
    return metrics[f'{name}{{model="{model}",version="1"}}']
