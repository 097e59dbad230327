"""A host under measurement: a process of its own, its start, its processor time and its memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from modelrail.client import AsyncInferenceClient

INFERENCE = (sys.executable, "-m", "modelrail_inference")
_POLL_SECONDS = 0.005
_STOP_SECONDS = 60.0


class HostFailed(Exception):
    """A host did not start; the message says why and ends with what it wrote."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process and all its descendants in bytes.

    Attributes:
        resident_bytes: Sum of the resident sets; pages that processes share count for each.
        proportional_bytes: The same with shared pages divided among those who share them.
    """

    resident_bytes: int
    proportional_bytes: int


@dataclass(slots=True)
class Host:
    """A running process that answers at an address.

    Attributes:
        address: HOST:PORT.
        listening_seconds: From the start of the process until it told its address.
        ready_seconds: From the start of the process until it was ready to answer requests.
    """

    address: str
    listening_seconds: float
    ready_seconds: float
    _process: psutil.Process

    @property
    def pid(self) -> int:
        """The first process; others may be below it."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Returns the processor time of all its processes until now, also of those that ended."""
        total = 0.0
        for process in self._tree():
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory(self) -> Memory:
        """Returns the memory of all its processes now."""
        infos = [process.memory_full_info() for process in self._tree()]
        return Memory(sum(info.rss for info in infos), sum(info.pss for info in infos))

    def processes(self) -> int:
        """Returns how many processes there are now."""
        return len(self._tree())

    def _tree(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


@asynccontextmanager
async def running(
    command: Sequence[str], *, wait_ready: bool = True, timeout_seconds: float = 120.0
) -> AsyncIterator[Host]:
    """Runs a host for the length of the context.

    Args:
        command: Program and arguments; `--address-file FILE` is added.
        wait_ready: Ask ServerReady until it is true; a host without it is ready when it listens.
        timeout_seconds: Longest time until it is ready.

    Raises:
        HostFailed: It ended, or was not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="modelrail-load-") as work:
        address_file = Path(work) / "address.json"
        log = Path(work) / "log"
        start = time.perf_counter()
        process = _start([*command, "--address-file", str(address_file)], log)
        try:
            async with asyncio.timeout(timeout_seconds):
                address = await _address(process, address_file)
                listening = time.perf_counter() - start
                if wait_ready:
                    await _ready(process, address, log)
            ready = time.perf_counter() - start
            yield Host(address, listening, ready, psutil.Process(process.pid))
        except (TimeoutError, _Ended) as error:
            why = str(error) or f"not ready after {timeout_seconds:g} s"
            raise HostFailed(f"{why}: {log.read_text()[-2000:]}") from error
        finally:
            _stop(process)


class _Ended(Exception):
    """The process will not become ready."""


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            command, stdout=stream, stderr=stream, env=_environment(), start_new_session=True
        )


def _environment() -> Mapping[str, str]:
    """The caller's, less settings of the services: flags alone say how a host is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MODELRAIL_")}


async def _address(process: subprocess.Popen[bytes], file: Path) -> str:
    while (address := _told(file)) is None:
        _check(process)
        # Another process writes the file; nothing else tells of its progress.
        await asyncio.sleep(_POLL_SECONDS)
    return address


def _told(file: Path) -> str | None:
    if not file.exists():
        return None
    return str(json.loads(file.read_text())["grpc_address"])


async def _ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    async with AsyncInferenceClient(address, timeout_seconds=5.0) as client:
        with log.open() as lines:
            while not await client.server_ready():
                _check(process)
                # It serves what it can and never becomes ready.
                if "model not served" in lines.read():
                    raise _Ended("a model is not served")
                await asyncio.sleep(_POLL_SECONDS)


def _check(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise _Ended(f"ended with {process.returncode}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to stop, and ends its whole session if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@cache
def inference_flags() -> frozenset[str]:
    """Returns the flags that this installation's inference service knows."""
    help_text = subprocess.run(
        [*INFERENCE, "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return frozenset(
        word.strip("[]") for word in help_text.split() if word.startswith(("--", "[--"))
    )


def inference_command(*flags: str) -> list[str]:
    """Returns the command that runs the inference service on free ports of loopback."""
    return [
        *INFERENCE, "--provider", "cpu", "--grpc-address", "127.0.0.1:0",
        "--metrics-address", "127.0.0.1:0", *flags,
    ]  # fmt: skip
