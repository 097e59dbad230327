"""A server as a process: start, drain, forced end, and starts that must fail."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SCRIPT = """
import asyncio, contextlib, sys
from pathlib import Path
import grpc
from modelrail_server.config import ServerConfig, load_config
from modelrail_server.policy import Permission
from modelrail_server.serve import Application, run

def say(text):
    print(text, flush=True)

@contextlib.asynccontextmanager
async def build(runtime):
    say("building")
    if "hang" in sys.argv[1]:
        await asyncio.Event().wait()
    if "broken" in sys.argv[1]:
        raise RuntimeError("broken build")
    release = asyncio.Event()

    async def wait(request, context):
        say("waiting")
        await release.wait()
        return b"done"

    async def free(request, context):
        release.set()
        return b"free"

    async def watch(request, context):
        yield b"first"
        await runtime.stopping.wait()
        yield b"last"

    handlers = {
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
        "Free": grpc.unary_unary_rpc_method_handler(free),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    service = "test.v1.Slow"
    try:
        yield Application(
            register=lambda server: server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            ),
            services=(service,),
            policy={f"/{service}/{name}": Permission.READ for name in handlers},
        )
    finally:
        say("closed")

config = load_config(ServerConfig, service="slow", argv=sys.argv[2:])
sys.exit(run(config, service="slow", build=build))
"""


class Process:
    def __init__(self, process: asyncio.subprocess.Process, address_file: Path) -> None:
        self._process = process
        self.address_file = address_file

    async def line(self) -> str:
        """The next line that the server says; empty at its end."""
        assert self._process.stdout
        async with asyncio.timeout(30):
            return (await self._process.stdout.readline()).decode().strip()

    async def addresses(self) -> dict[str, Any]:
        """What the address file says, once the log says that it is there."""
        assert self._process.stderr
        async with asyncio.timeout(30):
            async for line in self._process.stderr:
                if b'"event": "serving"' in line:
                    addresses: dict[str, Any] = json.loads(self.address_file.read_text())
                    return addresses
        raise AssertionError("the server ended before it served")

    def open_files(self) -> tuple[int, int]:
        """The soft and the hard limit of its open files."""
        return resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> tuple[int, str]:
        """Waits for the end: exit status and the rest of stderr."""
        async with asyncio.timeout(30):
            _, stderr = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, stderr.decode()


def open_channel(addresses: dict[str, Any]) -> Any:
    """A channel for bytes, untyped because its methods take no serialisers."""
    return grpc.aio.insecure_channel(addresses["grpc_address"])


def health_stub(channel: Any) -> Any:
    return health_pb2_grpc.HealthStub(channel)


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    script = tmp_path / "slow.py"
    script.write_text(SCRIPT)
    processes: list[asyncio.subprocess.Process] = []

    async def begin(*arguments: str, mode: str = "-") -> Process:
        address_file = tmp_path / "run" / "address.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), mode,
            f"--data-dir={tmp_path}/data", f"--address-file={address_file}", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        processes.append(process)
        return Process(process, address_file)

    yield begin
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        # Lets the pipes' transports close before the loop does.
        process._transport.close()  # type: ignore[attr-defined]


async def test_a_drain_tells_health_first_and_lets_calls_in_flight_finish(start: Start) -> None:
    server = await start("--drain-delay-seconds=0.5", "--shutdown-grace-seconds=20")
    addresses = await server.addresses()
    assert addresses["service"] == "slow"
    states = health_pb2.HealthCheckResponse
    async with open_channel(addresses) as channel:
        health = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service="test.v1.Slow"))
        assert (await health.read()).status == states.SERVING
        watch = channel.unary_stream("/test.v1.Slow/Watch")(b"")
        assert await watch.read() == b"first"
        waiting = channel.unary_unary("/test.v1.Slow/Wait")(b"")
        assert await server.line() == "building"
        assert await server.line() == "waiting"
        server.signal(signal.SIGTERM)
        assert (await health.read()).status == states.NOT_SERVING
        # Still serving: a new call is taken while load balancers find out.
        assert await channel.unary_unary("/test.v1.Slow/Free")(b"", timeout=10) == b"free"
        assert await waiting == b"done"
        assert await watch.read() == b"last"
        assert await watch.read() is grpc.aio.EOF
        assert await health.read() is grpc.aio.EOF
    assert await server.line() == "closed"
    status, _ = await server.end()
    assert status == 0
    assert not server.address_file.exists()


async def test_a_server_may_open_as_many_files_as_the_system_lets_it(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    try:
        server = await start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await server.line() == "building"
    assert server.open_files() == (hard, hard)


async def test_a_second_signal_ends_the_process_at_once(start: Start) -> None:
    server = await start("--shutdown-grace-seconds=1000")
    addresses = await server.addresses()
    async with open_channel(addresses) as channel:
        watch = channel.unary_stream("/test.v1.Slow/Watch")(b"")
        assert await watch.read() == b"first"
        waiting = channel.unary_unary("/test.v1.Slow/Wait")(b"")
        assert [await server.line(), await server.line()] == ["building", "waiting"]
        server.signal(signal.SIGTERM)
        assert await watch.read() == b"last"
        server.signal(signal.SIGTERM)
        status, _ = await server.end()
        with pytest.raises(grpc.aio.AioRpcError):
            await waiting
    assert status == 128 + signal.SIGTERM
    assert not server.address_file.exists()


async def test_a_signal_during_the_start_ends_it_cleanly(start: Start) -> None:
    server = await start(mode="hang")
    assert await server.line() == "building"
    server.signal(signal.SIGINT)
    assert (await server.end())[0] == 0


async def test_a_broken_start_is_logged_and_fails(start: Start) -> None:
    status, log = await (await start(mode="broken")).end()
    assert status == 1
    assert "broken build" in log


async def test_a_taken_port_is_told_without_a_trace(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--grpc-address", "--metrics-address"):
            status, log = await (await start(flag, address)).end()
            assert status == 1
            assert f"modelrail-slow: cannot listen on {address}" in log
            assert "Traceback" not in log


async def test_a_public_address_without_tls_and_keys_does_not_start(start: Start) -> None:
    server = await start("--grpc-address", "0.0.0.0:0")
    status, log = await server.end()
    assert status == 2
    assert "--grpc-address: 0.0.0.0:0 can be reached from other machines" in log
    assert await server.line() == ""


async def test_keys_that_others_can_read_do_not_start(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}')
    file.chmod(0o644)
    status, log = await (await start("--api-keys-file", str(file))).end()
    assert status == 2
    assert "--api-keys-file" in log
    assert "Traceback" not in log


async def test_metrics_are_on_a_port_of_their_own(start: Start) -> None:
    server = await start()
    addresses = await server.addresses()

    def fetch(path: str) -> str:
        url = f"http://{addresses['metrics_address']}{path}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())

    async with open_channel(addresses) as channel:
        await channel.unary_unary("/test.v1.Slow/Free")(b"")
    text = await asyncio.to_thread(fetch, "/metrics")
    labels = 'grpc_code="OK",grpc_method="Free",grpc_service="test.v1.Slow"'
    assert f"grpc_server_handled_total{{{labels}}} 1.0" in text
    assert f"grpc_server_handling_seconds_count{{{labels}}} 1.0" in text
    assert "process_resident_memory_bytes" in text
    with pytest.raises(urllib.error.HTTPError) as error:
        await asyncio.to_thread(fetch, "/")
    assert error.value.code == 404
    error.value.close()
    server.signal(signal.SIGTERM)
    assert (await server.end())[0] == 0
    assert addresses["pid"] != os.getpid()
