"""Callers who leave while a thread works for them."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from modelrail_trainer.execution.errands.errand import Errands
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.local import LocalExecutor
from modelrail_trainer.execution.processes.process import JobProcess
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.objects.fetching import ObjectFetcher
from modelrail_trainer.objects.named import NamedObjects
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.threads import Threads


class Gate:
    """Holds a function in its thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def wait(self) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._opened.wait(30)


class HeldExecutor(LocalExecutor):
    """Keeps its caller waiting after the process was started."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(
            (sys.executable, "-c", "pass"),
            threads_per_job=1,
            limits=JobLimits(file_bytes=1 << 20),
            environ={"PATH": os.environ["PATH"]},
        )
        self._gate = gate
        self.started: list[JobProcess] = []

    def submit(
        self, directory: Path, options: Sequence[str] = (), *, processes: int = 1
    ) -> JobProcess:
        self.started.append(super().submit(directory, options, processes=processes))
        self._gate.wait()
        return self.started[-1]


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads()
    yield threads
    threads.close()


def errands(root: Path, executor: LocalExecutor, threads: Threads) -> Errands:
    directories = JobDirectories(root / "errands")
    fetcher = ObjectFetcher(
        lambda specification: NamedObjects(), ObjectRoots(()), threads, max_objects=1, max_bytes=1
    )
    return Errands(
        "dry run",
        directories=directories,
        executor=executor,
        fetcher=fetcher,
        threads=threads,
        stopping=asyncio.Event(),
        limit_seconds=30,
    )


async def test_a_caller_who_leaves_at_the_start_of_its_process_leaves_none(
    tmp_path: Path, threads: Threads
) -> None:
    gate = Gate()
    executor = HeldExecutor(gate)
    async with errands(tmp_path, executor, threads) as kind:
        call = asyncio.create_task(kind.run(b"", (), lambda directory: None))
        await gate.reached.wait()
        call.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await call
        [started] = executor.started
        assert executor.find(started.handle) is None
        assert not list((tmp_path / "errands").iterdir())


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_disposes_of_what_a_thread_returned(
    fails: bool, threads: Threads
) -> None:
    gate = Gate()
    disposed: list[int] = []
    left: list[bool] = []

    def work() -> int:
        gate.wait()
        left.append(call.done())
        return 7 // (not fails)

    async def dispose(result: int) -> None:
        disposed.append(result)

    call = asyncio.create_task(threads.finish(work, dispose=dispose))
    await gate.reached.wait()
    call.cancel()
    asyncio.get_running_loop().call_soon(gate.open)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert left == [False]
    assert disposed == ([] if fails else [7])
