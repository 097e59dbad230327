"""Callers who leave while a thread works for them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelrail_trainer.execution.errands.errand import Errands
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.executor import ProcessExit
from modelrail_trainer.execution.processes.local import LocalExecutor
from modelrail_trainer.execution.processes.process import JobProcess
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.objects.fetching import ObjectFetcher
from modelrail_trainer.objects.named import NamedObjects
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.threads import Threads
from tests.thread_gate import Gate


class HeldExecutor(LocalExecutor):
    """Keeps its caller waiting after the process was started."""

    def __init__(self, gate: Gate, code: str = "pass") -> None:
        super().__init__(
            (sys.executable, "-c", code),
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


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_disposes_of_what_a_thread_returned(
    fails: bool, times: int, threads: Threads
) -> None:
    gate = Gate()
    disposed: list[int] = []
    left: list[bool] = []

    def work() -> int:
        gate.wait()
        left.append(call.done())
        return 7 // (not fails)

    async def dispose(result: int) -> None:
        await asyncio.sleep(0)
        disposed.append(result)

    call = asyncio.create_task(threads.finish(work, dispose=dispose))
    await gate.reached.wait()
    for _ in range(times):
        call.cancel()
        await asyncio.sleep(0)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert left == [False]
    assert disposed == ([] if fails else [7])


async def test_a_disposal_that_fails_does_not_stand_in_for_the_cancellation(
    threads: Threads,
) -> None:
    gate = Gate()

    async def dispose(_: None) -> None:
        raise OSError("no descriptor is left")

    call = asyncio.create_task(threads.finish(gate.wait, dispose=dispose))
    await gate.reached.wait()
    call.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError), capture_logs() as logs:
        await call
    assert [line["event"] for line in logs] == [
        "what a cancelled caller left could not be disposed of"
    ]


async def test_what_fails_after_its_caller_has_left_is_logged_once(threads: Threads) -> None:
    gate = Gate()

    def work() -> None:
        gate.wait()
        raise OSError("the disk is full")

    call = asyncio.create_task(threads.finish(work))
    await gate.reached.wait()
    call.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError), capture_logs() as logs:
        await call
    assert [line["error"] for line in logs] == ["the disk is full"]


async def test_the_process_of_an_errand_is_ended_although_its_caller_leaves_meanwhile(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    stop = JobProcess.stop

    async def held(process: JobProcess, grace_seconds: float) -> ProcessExit:
        begun.set()
        await go_on.wait()
        return await stop(process, grace_seconds)

    monkeypatch.setattr(JobProcess, "stop", held)
    gate = Gate()
    gate.open()
    executor = HeldExecutor(gate, "import signal; signal.pause()")
    kind = errands(tmp_path, executor, threads)
    async with kind:
        call = asyncio.create_task(kind.run(b"", (), lambda directory: None, limit_seconds=0.01))
        await begun.wait()  # its time is up
        call.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        [started] = executor.started
        assert executor.find(started.handle) is None
        assert not list((tmp_path / "errands").iterdir())
