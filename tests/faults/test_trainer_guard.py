"""A job that starts processes which leave its session and its parents: all of it ends with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from modelrail_trainer.execution.processes.executor import ProcessExit
from modelrail_trainer.execution.processes.local import LocalExecutor
from modelrail_trainer.execution.processes.process import JobProcess
from modelrail_trainer.handover.journal import IsolationEvent, read_events
from modelrail_trainer.isolation.guard import JOB_PROCESS
from modelrail_trainer.isolation.layer import LayerName
from modelrail_trainer.isolation.limits import JobLimits

PATIENCE_SECONDS = 60.0

# Leaves a daemon behind, as daemon(7) says, that has dropped whatever could tell where it is from.
DAEMON = """
import os, signal, sys, time
from pathlib import Path


def leave_a_daemon(name):
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(name).write_text(str(os.getpid()))
            os.chdir("/")
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            os.close(write)
            nap = "import signal\\nwhile True: signal.pause()"
            os.execve(sys.executable, ["nobody", "-c", nap], {})
        os._exit(0)
    os.wait()
    os.close(write)
    os.read(read, 1)  # until the daemon has become a program
"""
KNOWN = """
import os, signal
from pathlib import Path

Path("job").write_text(str(os.getpid()))
"""
STAYS = "\nPath('up').touch()\nwhile True: signal.pause()"


def executor(code: str) -> LocalExecutor:
    return LocalExecutor(
        (sys.executable, "-c", code),
        threads_per_job=1,
        limits=JobLimits(file_bytes=1 << 24),
        environ=os.environ,
    )


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def number_in(file: Path) -> int | None:
    text = file.read_text() if file.exists() else ""
    return int(text) if text else None


def numbers_in(directory: Path) -> list[int | None]:
    return [number_in(file) for file in directory.glob("daemon-*")]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "a-job"
    path.mkdir()
    return path


def assert_gone(pid: int | None) -> None:
    assert pid is not None
    if psutil.pid_exists(pid):
        left = psutil.Process(pid)
        left.kill()
        pytest.fail(f"{left} outlived its job")


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("", ProcessExit(0)),
        ("\nsys.exit(3)", ProcessExit(3)),
        ("\nos.kill(os.getpid(), signal.SIGSEGV)", ProcessExit(-signal.SIGSEGV)),
        ("\nos.kill(os.getpid(), signal.SIGKILL)", ProcessExit(-signal.SIGKILL)),
    ],
)
async def test_a_daemon_ends_with_its_job_which_ends_as_it_would_without(
    last: str, expected: ProcessExit, directory: Path
) -> None:
    async with executor(f"{DAEMON}\nleave_a_daemon('daemon'){last}").submit(directory) as process:
        process.release()
        assert await process.wait() == expected
    assert_gone(number_in(directory / "daemon"))


@pytest.mark.parametrize("grace_seconds", [0.0, 20.0])
async def test_a_daemon_ends_with_a_job_that_is_stopped(
    grace_seconds: float, directory: Path
) -> None:
    async with executor(f"{DAEMON}\nleave_a_daemon('daemon'){STAYS}").submit(directory) as process:
        process.release()
        await until((directory / "up").exists)
        ended = await process.stop(grace_seconds)
    assert ended.code in {-signal.SIGTERM, -signal.SIGKILL}
    assert_gone(number_in(directory / "daemon"))


async def test_a_daemon_ends_with_a_job_that_ignores_all_it_can(directory: Path) -> None:
    deaf = "\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{DAEMON}\nleave_a_daemon('daemon'){deaf}{STAYS}"
    async with executor(code).submit(directory) as process:
        process.release()
        await until((directory / "up").exists)
        assert await process.stop(0.1) == ProcessExit(-signal.SIGKILL)
    assert_gone(number_in(directory / "daemon"))


@pytest.mark.parametrize("how", ["stopped", "by itself"])
async def test_a_daemon_ends_with_a_job_that_another_trainer_adopted(
    how: str, directory: Path
) -> None:
    wait = "\nPath('up').touch()\nwhile not Path('end').exists(): time.sleep(0.01)"
    code = f"{DAEMON}\nleave_a_daemon('daemon'){wait}"
    submitted = executor(code).submit(directory)
    async with submitted:
        submitted.release()
    await until((directory / "up").exists)
    adopted = executor(code).find(submitted.handle)
    assert isinstance(adopted, JobProcess)
    async with adopted:
        if how == "stopped":
            assert await adopted.stop(0) == ProcessExit(None)
        else:
            (directory / "end").touch()
            assert await adopted.wait() == ProcessExit(None)
    assert_gone(number_in(directory / "daemon"))
    submitted._child.wait()  # type: ignore[union-attr]  # the trainer that it was a child of is gone


async def test_daemons_that_make_daemons_all_end(directory: Path) -> None:
    code = f"""{DAEMON}
for one in range(4):
    leave_a_daemon(f"daemon-{{os.getpid()}}-{{one}}")
    if os.fork() == 0:
        os.setsid()
"""
    async with executor(code).submit(directory) as process:
        process.release()
        assert (await process.wait()).code == 0
    numbers = numbers_in(directory)
    assert len(numbers) >= 4
    for number in numbers:
        assert_gone(number)


async def test_a_guard_that_is_killed_takes_the_job_along(directory: Path) -> None:
    async with executor(KNOWN + STAYS).submit(directory) as process:
        process.release()
        await until((directory / "up").exists)
        os.kill(process.identity.pid, signal.SIGKILL)
        assert await process.wait() == ProcessExit(-signal.SIGKILL)
    job = number_in(directory / "job")
    assert job is not None
    await until(lambda: not psutil.pid_exists(job))


async def test_a_guard_that_does_not_answer_is_ended_with_its_group(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelrail_trainer.execution.processes.process._GUARD_SECONDS", 0.1)
    async with executor(KNOWN + STAYS).submit(directory) as process:
        process.release()
        await until((directory / "up").exists)
        os.kill(process.identity.pid, signal.SIGSTOP)
        job = number_in(directory / "job")
        os.kill(job or 0, signal.SIGSTOP)
        assert await process.stop(0) == ProcessExit(-signal.SIGKILL)
    assert job is not None
    await until(lambda: not psutil.pid_exists(job))


async def test_the_job_cannot_signal_its_guard(directory: Path) -> None:
    code = (
        "import os, signal\n"
        "try:\n    os.kill(os.getppid(), signal.SIGUSR2)\n"
        "except PermissionError:\n    print('refused')\n"
    )
    async with executor(code).submit(directory) as process:
        process.release()
        ended = await process.wait()
    (event, *_), _ = read_events(directory / "events.jsonl", 0)
    assert isinstance(event, IsolationEvent)
    layers = {layer.name: layer for layer in event.layers}
    if not layers[LayerName.SIGNALS].active:
        pytest.skip(f"SIGNALS is not active here: {layers[LayerName.SIGNALS].detail}")
    assert ended == ProcessExit(0)
    assert (directory / "worker.log").read_text() == "refused\n"
    assert layers[LayerName.SESSION].detail == (
        "has a session of its own, and ends with all that it starts (PR_SET_CHILD_SUBREAPER)"
    )


def test_a_process_whose_parent_is_gone_already_does_not_stay(tmp_path: Path) -> None:
    """As torchrun's, when torchrun is killed while Python starts."""
    code = "from modelrail_trainer.worker.__main__ import main; main()"
    environ = os.environ | {"WORLD_SIZE": "2", "RANK": "1", JOB_PROCESS: "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code, "--job-directory", str(tmp_path)],
        check=False,
        env=environ,
        timeout=PATIENCE_SECONDS,
    )
    assert ended.returncode == -signal.SIGKILL
