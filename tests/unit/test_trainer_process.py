from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelrail.names import TrainingJobName
from modelrail_server import file_limit
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.executor import LOG_NAME
from modelrail_trainer.execution.processes.executor import ProcessExit as Exit
from modelrail_trainer.execution.processes.local import LocalExecutor
from modelrail_trainer.execution.processes.process import JobProcess, ProcessIdentity, identify
from modelrail_trainer.isolation.limits import JobLimits

NAP = "import signal; print('up', flush=True); signal.pause()"


def executor(code: str = "") -> LocalExecutor:
    return LocalExecutor(
        (sys.executable, "-c", code),
        threads_per_job=1,
        limits=JobLimits(file_bytes=1 << 20),
        environ={"PATH": os.environ["PATH"], "SECRET": "x"},
    )


@pytest.fixture
def foreign_process() -> Iterator[subprocess.Popen[str]]:
    """A process that was not submitted, in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", NAP], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.stdout.close()
    process.kill()
    process.wait()


def test_a_living_process_has_one_identity() -> None:
    identity = identify(os.getpid())
    assert identity is not None
    assert identity == identify(os.getpid()) == ProcessIdentity.from_handle(identity.handle)
    assert identity != identify(os.getppid())


def test_the_age_of_a_process_is_read_from_when_the_kernel_started_it() -> None:
    identity = identify(os.getpid())
    assert identity is not None
    hour_in_ticks = 3600 * os.sysconf("SC_CLK_TCK")
    older = replace(identity, start_ticks=identity.start_ticks - hour_in_ticks)
    age = JobProcess(identity, None).age_seconds
    assert 0 <= age < 3600
    assert age + 3600 <= JobProcess(older, None).age_seconds < age + 7200


async def test_an_executor_finds_what_another_one_started_while_it_lives(tmp_path: Path) -> None:
    directory = tmp_path / "a-job"
    directory.mkdir()
    async with executor(NAP).submit(directory) as process:
        process.release()
        try:
            listed = [(str(name), one.handle) for name, one in executor().executions(tmp_path)]
            found = executor().find(process.handle)
            assert found is not None
            async with found:
                assert not found.exited
        finally:
            await process.stop(10)
    assert listed == [("trainingJobs/a-job", process.handle)]
    assert executor().find(process.handle) is None
    assert executor().executions(tmp_path) == []


def test_a_dead_process_has_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert identify(process.pid) is None  # its remains are still there
    process.wait()
    assert identify(process.pid) is None


async def test_an_adopted_process_is_awaited_and_stopped(
    foreign_process: subprocess.Popen[str],
) -> None:
    identity = identify(foreign_process.pid)
    assert identity is not None
    async with JobProcess(identity, None) as process:
        assert not process.exited
        assert await process.stop(10) == Exit(None)
    assert foreign_process.wait() == -signal.SIGTERM


async def test_a_stranger_with_the_same_pid_is_left_alone(
    foreign_process: subprocess.Popen[str],
) -> None:
    identity = identify(foreign_process.pid)
    assert identity is not None
    async with JobProcess(replace(identity, start_ticks=identity.start_ticks - 1), None) as process:
        assert process.exited
        await process.stop(0)
    assert foreign_process.poll() is None


async def test_a_process_runs_nothing_before_it_is_released(tmp_path: Path) -> None:
    marks = "open('ran', 'w').close()"
    async with executor(marks).submit(tmp_path) as process:
        pass  # Nobody released it: what happens when the trainer dies right here.
    async with JobProcess(process.identity, process._child) as abandoned:
        assert (await abandoned.wait()).code != 0
    assert not (tmp_path / "ran").exists()


async def test_a_job_may_open_as_many_files_as_its_trainer_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(file_limit, "_soft_at_start", None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft // 2, hard))
    code = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    try:
        file_limit.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        async with executor(code).submit(tmp_path) as process:
            process.release()
            await process.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (tmp_path / LOG_NAME).read_text() == f"{soft // 2} {hard}\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", Exit(0)),
        ("raise SystemExit(3)", Exit(3)),
        ("import os; os.kill(os.getpid(), 9)", Exit(-9)),
    ],
)
async def test_the_exit_tells_how_it_ended(tmp_path: Path, code: str, expected: Exit) -> None:
    async with executor(code).submit(tmp_path) as process:
        process.release()
        assert await process.wait() == expected


async def test_a_process_gets_little_to_see(tmp_path: Path) -> None:
    code = "import os; print(os.environ.get('SECRET'), os.getcwd(), os.umask(0), os.getsid(0))"
    async with executor(code).submit(tmp_path) as process:
        process.release()
        await process.wait()
    expected = f"None {tmp_path} {0o077} {process.identity.pid}"
    assert (tmp_path / "worker.log").read_text().strip() == expected


async def test_a_file_that_grows_without_end_is_stopped(tmp_path: Path) -> None:
    code = "while True: print('x' * 100000)"
    async with executor(code).submit(tmp_path) as process:
        process.release()
        assert (await process.wait()).code == 1
    assert (tmp_path / "worker.log").stat().st_size <= 1 << 20


def test_a_log_tail_shows_no_directories(tmp_path: Path) -> None:
    directories = JobDirectories(tmp_path)
    name = TrainingJobName("a-job")
    directories.prepare(name, b"")
    log = directories.path(name) / "worker.log"
    log.write_text("x" * 9000 + '\n  File "/opt/venv/lib/torch/nn.py", line 3\nValueError: 1/2\n')
    tail = directories.log_tail(name)
    assert tail.endswith('File "nn.py", line 3\nValueError: 1/2')
    assert len(tail) <= 1500


def test_a_new_attempt_finds_the_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    directories = JobDirectories(tmp_path)
    name = TrainingJobName("a-job")
    directory = directories.prepare(name, b"first")
    (directory / "events.jsonl").write_text("old")
    for folder in ("checkpoints", "data"):
        (directory / folder).mkdir()
        (directory / folder / "file").write_text("old")
    assert directories.prepare(name, b"second") == directory
    assert {path.name for path in directory.iterdir()} == {"spec.binpb", "checkpoints"}
    assert (directory / "checkpoints" / "file").read_text() == "old"
    directories.trim(name)
    assert [path.name for path in directory.iterdir()] == ["spec.binpb"]
    assert directory.stat().st_mode & 0o777 == 0o700
