"""What the chassis adds to one unary RPC: server CPU time and requests/s beside a bare echo.

    python tests/load/chassis.py
    python tests/load/chassis.py --against ../other-checkout --rounds 9

Every kind of server is a process of its own, idle while another is measured; client processes of
their own keep a fixed number of requests in flight (closed loop). The kinds take turns, so that a
change of the machine's mood meets all of them; the table shows medians over the rounds.

    bare      grpc.aio alone, bytes in and out: the floor
    options   bare with the chassis' limits of connections, streams and calls
    chassis   the chassis without keys, bytes in and out
    keys      the chassis with API keys, bytes in and out
    message   the chassis without keys, a ModelInferRequest parsed and a response serialised
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail_server.access.api_keys import new_key, write_keys
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ServerConfig
from modelrail_server.policy import Permission
from modelrail_server.server import _options, start_server

KINDS = ("bare", "options", "chassis", "keys", "message")
SERVICE = "load.v1.Echo"
METHODS = ("Infer", *(f"Other{number}" for number in range(19)))
PATH = f"/{SERVICE}/{METHODS[0]}"


def request_bytes() -> bytes:
    """What a model of 64 numbers is asked with."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 64])
    request = pb.ModelInferRequest(model_name="mlp", inputs=[tensor])
    request.raw_input_contents.append(bytes(256))
    return request.SerializeToString()


RESPONSE = pb.ModelInferResponse(
    model_name="mlp",
    model_version="1",
    outputs=[pb.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=[1, 10])],
    raw_output_contents=[bytes(40)],
)


# --- the servers ----------------------------------------------------------------------------------


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def answer(request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
    return RESPONSE


def handlers(kind: str) -> dict[str, Any]:
    if kind == "message":
        handler = grpc.unary_unary_rpc_method_handler(
            answer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
        )
    else:
        handler = grpc.unary_unary_rpc_method_handler(echo)
    # As many methods as the inference service has.
    return dict.fromkeys(METHODS, handler)


def register(kind: str, server: grpc.aio.Server) -> None:
    """Does what generated code does."""
    methods = handlers(kind)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_registered_method_handlers(SERVICE, methods)


async def start_bare(kind: str, config: ServerConfig) -> grpc.aio.Server:
    generic = grpc.method_handlers_generic_handler(SERVICE, handlers(kind))
    if kind == "bare":
        server = grpc.aio.server(handlers=[generic])
    else:
        server = grpc.aio.server(
            handlers=[generic],
            options=_options(config),
            maximum_concurrent_rpcs=config.max_concurrent_rpcs,
        )
    server.add_insecure_port(config.grpc_address)
    await server.start()
    return server


async def serve(kind: str, address: str, keys: Path | None) -> None:
    config = ServerConfig(grpc_address=address, api_keys_file=keys if kind == "keys" else None)
    if kind in {"bare", "options"}:
        server = await start_bare(kind, config)
    else:
        application = Application(
            register=lambda server: register(kind, server),
            services=(SERVICE,),
            policy={f"/{SERVICE}/{method}": Permission.INFER for method in METHODS},
        )
        server, _ = await start_server(application, config, Runtime("load"))
    print("serving", flush=True)
    # Until the parent closes the pipe.
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


# --- the clients ----------------------------------------------------------------------------------


async def load(folder: str, in_flight: int, authorization: str) -> None:
    """Sends as many requests as each line on stdin says, to the server that it names."""
    payload = request_bytes()
    metadata = (("authorization", authorization),) if authorization else None
    channels: dict[str, grpc.aio.Channel] = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, count = line.split()
        if name not in channels:
            channels[name] = grpc.aio.insecure_channel(f"unix:{folder}/{name}")
        call: Any = channels[name].unary_unary(PATH)
        sent_metadata = metadata if name.startswith("keys") else None
        left = iter(range(int(count)))

        async def caller(call: Any, left: Iterator[int], sent: Any) -> None:
            for _ in left:
                await call(payload, metadata=sent)

        await asyncio.gather(*(caller(call, left, sent_metadata) for _ in range(in_flight)))
        print("done", flush=True)


# --- the measurement ------------------------------------------------------------------------------


@dataclass
class Subject:
    """One server and what was measured of it."""

    name: str
    cpu_clock: int
    cpu_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)


@contextmanager
def child(*arguments: str, source: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    environment = dict(os.environ)
    if source is not None:
        folders = [str(source.resolve() / folder) for folder in ("services", "clients")]
        environment["PYTHONPATH"] = os.pathsep.join(folders)
    with subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    if (line := process.stdout.readline().strip()) != word:
        raise RuntimeError(f"expected {word!r} of a child process, got {line!r}")


def cpu_clock_of(pid: int) -> int:
    """The clock that counts the CPU time of a process, in nanoseconds: /proc has hundredths."""
    clock = ctypes.c_int()
    if problem := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(problem, os.strerror(problem))
    return clock.value


def measure(subject: Subject, clients: list[subprocess.Popen[str]], requests: int) -> None:
    """Sends `requests` and notes the server's CPU time and the rate."""
    cpu_ns, began = time.clock_gettime_ns(subject.cpu_clock), time.perf_counter()
    for client in clients:
        assert client.stdin is not None
        client.stdin.write(f"{subject.name} {requests // len(clients)}\n")
        client.stdin.flush()
    for client in clients:
        expect(client, "done")
    seconds = time.perf_counter() - began
    cpu_ns = time.clock_gettime_ns(subject.cpu_clock) - cpu_ns
    subject.cpu_us.append(cpu_ns / requests / 1000)
    subject.per_second.append(requests / seconds)


def table(subjects: list[Subject]) -> str:
    """Medians, and the differences to the first subject, taken round by round."""
    floor = subjects[0]
    lines = [f"{'server':<22}{'CPU µs/request':>16}{'over bare µs':>14}{'requests/s':>12}"]
    for subject in subjects:
        over = [own - bare for own, bare in zip(subject.cpu_us, floor.cpu_us, strict=True)]
        lines.append(
            f"{subject.name:<22}{statistics.median(subject.cpu_us):>16.1f}"
            f"{statistics.median(over):>+14.1f}{statistics.median(subject.per_second):>12.0f}"
        )
    return "\n".join(lines)


def bench(arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        key, record = new_key("load", [Permission.INFER])
        write_keys(folder / "keys.json", [record])
        subjects = []
        sources = [("", None), *([("-other", arguments.against)] if arguments.against else [])]
        for kind in dict.fromkeys(("bare", *arguments.kinds)):
            for suffix, source in sources:
                if suffix and kind in {"bare", "options"}:
                    continue
                name = f"{kind}{suffix}"
                options = [f"--serve={kind}", f"--address=unix:{folder}/{name}"]
                options.append(f"--keys={folder}/keys.json")
                server = stack.enter_context(child(*options, source=source))
                expect(server, "serving")
                subjects.append(Subject(name, cpu_clock_of(server.pid)))
        options = [f"--load={folder}", f"--in-flight={arguments.in_flight // arguments.clients}"]
        options.append(f"--authorization=Bearer {key}")
        clients = [stack.enter_context(child(*options)) for _ in range(arguments.clients)]
        for round_number in range(-1, arguments.rounds):
            # Forwards and backwards in turn: what a slow drift does to one round the next undoes.
            for subject in subjects[:: -1 if round_number % 2 else 1]:
                measure(subject, clients, arguments.requests)
                if round_number < 0:  # the first round warms up
                    subject.cpu_us.clear()
                    subject.per_second.clear()
        if arguments.json:
            print(json.dumps({s.name: [s.cpu_us, s.per_second] for s in subjects}))
        print(table(subjects))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds")
    parser.add_argument("--requests", type=int, default=4000, help="requests in one round")
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--in-flight", type=int, default=32, help="requests in flight, of all")
    parser.add_argument("--json", action="store_true", help="print the rounds too")
    parser.add_argument(
        "--against", type=Path, help="another checkout whose chassis is measured in the same rounds"
    )
    for internal in ("--serve", "--address", "--load", "--authorization"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--keys", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, arguments.address, arguments.keys))
    elif arguments.load:
        asyncio.run(load(arguments.load, arguments.in_flight, arguments.authorization))
    else:
        bench(arguments)


if __name__ == "__main__":
    main()
