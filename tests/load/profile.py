"""Where the time of one tiny request goes in the server.

    python -m tests.load.profile

py-spy (`pip install --no-deps -r deploy/load.txt`) looks at the server's stacks, native code too,
while a load generator keeps it busy. It counts the samples in which a thread holds the
interpreter's lock: they are what limits a server in Python. Threads that run without the lock, such
as those of ONNX Runtime, show in the processor time of each thread. Sampling stops the process for
moments: shares are what to read, not rates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil

from tests.load.generator import Generator, Target, is_available, send
from tests.load.models import FOLDER, MODELS
from tests.load.process import Host, inference_command, running
from tests.load.repository import add_model
from tests.load.request import encode
from tests.load.samples import Place, read
from tests.load.table import Table, publish

_SAMPLES_PER_SECOND = 100


class ProfilerFailed(Exception):
    """py-spy did not profile; the message is what it wrote."""


def profiler() -> str | None:
    """Returns the path of py-spy: beside the interpreter, or on the path."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


async def _py_spy(program: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise ProfilerFailed(errors.decode()[-1000:])
    return output.decode()


async def _thread_names(program: str, host: Host) -> dict[int, str]:
    """Returns the names of the threads that run Python, by the system's thread id."""
    dump = await _py_spy(program, "dump", "--json", "--pid", str(host.pid))
    return {thread["os_thread_id"]: thread["thread_name"] for thread in json.loads(dump)}


def _thread_seconds(host: Host) -> dict[int, float]:
    threads = psutil.Process(host.pid).threads()
    return {thread.id: thread.user_time + thread.system_time for thread in threads}


def _native_name(host: Host, thread: int) -> str:
    name = Path(f"/proc/{host.pid}/task/{thread}/comm").read_text().strip()
    return f"native: {name}"


async def measure(
    options: argparse.Namespace, program: str
) -> tuple[Counter[Place], dict[str, float]]:
    """Returns samples by place, and processor seconds per request by thread."""
    model = MODELS["mlp"]
    file = model.file(options.folder)
    body = encode(model.name, model.inputs(1, np.random.default_rng(0)))
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as folder:
        work = Path(folder)
        add_model(work / "repository", model.name, file, batching=True)
        flags = ["--model-repository", str(work / "repository")]
        async with running(inference_command(*flags, *shlex.split(options.server_flags))) as host:
            target = Target(host, model.name, body, model.ranges)
            # Longer than the profile, so that the server is busy all the time.
            load = asyncio.create_task(
                send(
                    options.generator,
                    target,
                    concurrency=options.concurrency,
                    streaming=options.streaming,
                    seconds=options.seconds * 1.5 + 2,
                )
            )
            await asyncio.sleep(options.seconds * 0.2)
            before = _thread_seconds(host)
            await _py_spy(
                program,
                *("record", "--pid", str(host.pid), "--duration", str(options.seconds)),
                *("--rate", str(_SAMPLES_PER_SECOND), "--gil", "--native"),
                *("--format", "raw", "--full-filenames", "--output", str(work / "samples")),
            )
            after = _thread_seconds(host)
            names = await _thread_names(program, host)
            seconds: defaultdict[str, float] = defaultdict(float)
            for thread, until in after.items():
                name = names.get(thread) or _native_name(host, thread)
                seconds[name] += until - before.get(thread, 0.0)
            figures = await load
        scale = figures.cpu_seconds_per_request / sum(seconds.values())
        per_request = {name: spent * scale for name, spent in seconds.items()}
        return read((work / "samples").read_text().splitlines()), per_request


def tables(places: Counter[Place], threads: Mapping[str, float]) -> list[Table]:
    """Returns threads, layers and functions, each from the greatest share."""
    by_thread = Table("processor time by thread", ("thread", "µs/request", "share"))
    for name, seconds in sorted(threads.items(), key=lambda item: -item[1]):
        if seconds:
            by_thread.add(name, f"{seconds * 1e6:.0f}", _share(seconds, sum(threads.values())))
    layers: Counter[str] = Counter()
    for found, count in places.items():
        layers[found.layer] += count
    by_layer = Table(
        f"time with the interpreter's lock by layer ({places.total()} samples)", ("layer", "share")
    )
    for layer, count in layers.most_common():
        by_layer.add(layer, _share(count, places.total()))
    functions = Table("the same by function", ("layer", "function", "share"))
    for found, count in places.most_common(20):
        functions.add(found.layer, found.function, _share(count, places.total()))
    return [by_thread, by_layer, functions]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def main() -> None:
    """Profiles the server under load."""
    parser = argparse.ArgumentParser(description="Where the time of one tiny request goes.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--generator", type=Generator, choices=Generator, default="modelrail")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--streaming", action="store_true", help="with --generator modelrail")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--server-flags", default="", help="more flags for the server, as one text")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for all samples")
    options = parser.parse_args()
    program = profiler()
    if program is None:
        parser.error("py-spy: not found; pip install --no-deps -r deploy/load.txt")
    if not is_available(options.generator):
        parser.error("--generator h2load: not found; it is in Debian's package nghttp2-client")
    if options.quick:
        options.seconds = 1
    places, threads = asyncio.run(measure(options, program))
    figures = [asdict(found) | {"samples": count} for found, count in places.items()]
    publish(tables(places, threads), {"places": figures, "threads": threads}, options.json)


if __name__ == "__main__":
    main()
