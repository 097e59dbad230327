"""The metrics address under abuse, and read by a real Prometheus server."""

from __future__ import annotations

import asyncio
import bisect
import json
import random
import shutil
import socket
import string
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import onnx
import pytest
from onnx import TensorProto, helper

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.provider import Provider
from modelrail_inference.service import build
from modelrail_inference.statistics import LATENCY_EDGES_US
from modelrail_server.address import Address
from modelrail_server.application import Runtime
from modelrail_server.observability.scrape import MetricsServer
from modelrail_server.server import start_server

PROMETHEUS = shutil.which("prometheus")


def save_model(path: Path) -> None:
    """Counts to the number given, one loop step after the other: the caller says for how long."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "one"], ["w"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("v", TensorProto.FLOAT, [1]),
        ],
        [value("go_on", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, [1])],
        initializer=[helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["steps", "yes", "x"], ["y"], body=body)],
        "count",
        [value("steps", TensorProto.INT64, []), value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        initializer=[helper.make_tensor("yes", TensorProto.BOOL, [], [True])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


def request_for(
    model: str, version: str = "", request_id: str = "", steps: int = 1
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    request.inputs.add(name="steps", datatype="INT64", shape=[])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.raw_input_contents.extend([steps.to_bytes(8, "little"), bytes(4)])
    return request


class Server:
    """A running service and its metrics address."""

    def __init__(self, channel: grpc.aio.Channel, metrics: Address) -> None:
        self.channel = channel
        self.stub: Any = GRPCInferenceServiceStub(channel)
        self.metrics = metrics

    async def scrape(self) -> str:
        def get() -> str:
            url = f"http://{self.metrics}/metrics"
            with urllib.request.urlopen(url, timeout=30) as reply:
                return str(reply.read().decode())

        return await asyncio.to_thread(get)

    async def series(self) -> set[str]:
        """What identifies the series: the lines without their values."""
        lines = (await self.scrape()).splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


@asynccontextmanager
async def serving(folder: Path, *models: str) -> AsyncIterator[Server]:
    for model in models:
        save_model(folder / "models" / model / "1" / "model.onnx")
    config = InferenceConfig(
        grpc_address=f"unix:{folder}/s",
        data_dir=folder / "data",
        provider=Provider.CPU,
        model_repository=folder / "models",
    )
    runtime = Runtime("inference")
    async with build(config, runtime) as application:
        server, address = await start_server(application, config, runtime)
        metrics = MetricsServer(Address.parse("127.0.0.1:0"), runtime.metrics)
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                started = Server(channel, metrics.address)
                async with asyncio.timeout(30):
                    ready = pb.ServerReadyRequest()
                    while not (await started.stub.ServerReady(ready)).ready:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                yield started
        finally:
            metrics.close()
            runtime.stopping.set()
            await server.stop(0)


async def test_ten_thousand_made_up_names_add_no_series(tmp_path: Path) -> None:
    generator = random.Random(50)  # noqa: S311 (a seed, no secret)

    def made_up() -> str:
        alphabet = string.ascii_letters + '"\\\n{},=žď🐎'
        return "".join(generator.choices(alphabet, k=generator.choice((1, 8, 60, 5000))))

    async with serving(tmp_path, "real") as server:

        async def ask(count: int) -> int:
            async def requests() -> AsyncIterator[pb.ModelInferRequest]:
                for _ in range(count):
                    yield request_for(made_up(), version=str(generator.randrange(10**6)))

            answers = server.stub.ModelStreamInfer(requests(), metadata=(("x-request-id", "r"),))
            return len([answer async for answer in answers if answer.error_message])

        async def ask_unary(name: str, version: str = "") -> None:
            with pytest.raises(grpc.aio.AioRpcError):
                await server.stub.ModelInfer(request_for(name, version, request_id=made_up()))

        async def ask_method(name: str) -> None:
            call: Any = server.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"")

        async def ask_everything() -> None:
            """Makes each kind of call end in each of its ways once."""
            await server.stub.ModelInfer(request_for("real"))
            await ask(1)
            await ask_unary("nobody")  # NOT_FOUND
            await ask_unary("real", "no number")  # INVALID_ARGUMENT
            await ask_method("Nothing")  # UNIMPLEMENTED

        await ask_everything()
        before = await server.series()
        assert await ask(10_000) == 10_000
        for number in range(20):
            await ask_method(f"Method{number}")
            await ask_unary(made_up())
            await ask_unary("real", made_up())
        await ask_unary("n" * 1_000_000)
        await ask_everything()
        assert await server.series() == before
        assert any('model="real"' in line for line in before)


async def test_scrapers_that_do_not_read_hold_up_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path, "real") as server:
        with ExitStack() as stack:
            for _ in range(4):
                slow = stack.enter_context(
                    socket.create_connection((server.metrics.host, server.metrics.port))
                )
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(8):  # as many as have a place
                stalled = stack.enter_context(
                    socket.create_connection((server.metrics.host, server.metrics.port))
                )
                stalled.sendall(b"GET /met")
            await server.stub.ModelInfer(request_for("real"))
            assert 'nv_inference_count{model="real",version="1"} 1\n' in await server.scrape()


# --- a real Prometheus server ---------------------------------------------------------------------


class Prometheus:
    """The HTTP API of a running Prometheus server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def query(self, expression: str) -> list[float]:
        """The values of the series that an expression gives; none while it does not answer."""
        question = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(  # noqa: S310 (a fixed scheme)
                f"{self._url}/query?{question}", timeout=10
            ) as reply:
                answer = json.load(reply)
        except OSError:  # it is still starting
            return []
        assert answer["status"] == "success", answer
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    async def until(self, expression: str, value: float) -> None:
        """Waits until a scrape has seen a value."""
        async with asyncio.timeout(60):
            while await asyncio.to_thread(self.query, expression) != [value]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@contextmanager
def prometheus(folder: Path, target: Address) -> Iterator[Prometheus]:
    """Runs a Prometheus server that scrapes `target` five times a second."""
    assert PROMETHEUS is not None
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        "scrape_configs:\n"
        f"  - {{job_name: modelrail, static_configs: [{{targets: ['{target}']}}]}}\n"
    )
    with socket.socket() as free:  # Prometheus cannot say which port it took, so it is told one
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROMETHEUS, f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process,
    ):
        try:
            yield Prometheus(port)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def bucket_of(seconds: float) -> tuple[float, float]:
    """The edges between which the histogram puts a latency, in seconds."""
    edges = [0.0, *(edge / 1e6 for edge in LATENCY_EDGES_US)]
    above = bisect.bisect_left(edges, seconds)
    return edges[above - 1], edges[above]


@pytest.mark.skipif(PROMETHEUS is None, reason="needs the binary of Debian's package prometheus")
async def test_prometheus_finds_the_p99_of_what_was_sent(tmp_path: Path) -> None:
    async with serving(tmp_path, "m", "other") as server:

        async def send(steps: int) -> float:
            began = time.perf_counter()
            await server.stub.ModelInfer(request_for("m", steps=steps))
            return time.perf_counter() - began

        with prometheus(tmp_path, server.metrics) as found:
            await found.until('nv_inference_count{model="m",version="1"}', 0)
            steps, calls = 1000, 1
            while await send(steps) < 0.04:
                steps, calls = steps * 2, calls + 1
            # 5 of 100 are slow, and what found out how slow lies between the two.
            fast, slow = [], []
            for number in range(400):
                if number % 20 == 7:
                    slow.append(await send(steps))
                else:
                    fast.append(await send(1))
            await server.stub.ModelInfer(request_for("other"))
            calls += 400
            histogram = "modelrail_inference_request_duration_seconds"
            await found.until(f'{histogram}_count{{model="m"}}', calls)
            await found.until(f"sum({histogram}_count)", calls + 1)
            await found.until('nv_inference_count{model="m"}', calls)
            await found.until('nv_inference_request_duration_histogram_us_count{model="m"}', calls)

            async def quantile(share: float) -> float:
                selected = f'{histogram}_bucket{{model="m",version="1"}}'
                expression = f"histogram_quantile({share}, sum by (le) ({selected}))"
                (seconds,) = await asyncio.to_thread(found.query, expression)
                return seconds

            # What a call takes the server is less than its caller waits, and for a slow one it is
            # most of it. A histogram knows latencies but for the width of a bucket.
            p99, median = await quantile(0.99), await quantile(0.5)
            assert bucket_of(min(slow) / 4)[0] < p99 <= bucket_of(max(slow))[1]
            assert 0 < median <= bucket_of(sorted(fast)[len(fast) // 2])[1]
            assert median < min(slow) / 4
            (sum_seconds,) = await asyncio.to_thread(found.query, f'{histogram}_sum{{model="m"}}')
            assert len(slow) * min(slow) / 4 < sum_seconds
