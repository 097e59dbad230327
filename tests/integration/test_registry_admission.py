"""The gate and its program: whatever the program does, the gate answers and is free again."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelrail_registry.admission.gate import Gate, Verdict
from modelrail_registry.catalog.database import Database
from modelrail_server.errors import Unavailable

# Does what the file says: a line of Python.
PROGRAM = """
import fcntl, json, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)  # so that much is left in it at the end
path, limit = sys.argv[1], int(sys.argv[2])
print_endlessly = lambda: [os.write(1, b"x" * 65536) for _ in iter(int, 1)]
answer = lambda **document: print(json.dumps(document))
exec(open(path).read())
"""
GOOD = 'answer(signature={"inputs": [], "outputs": []}, opset=18)'


class Site:
    """A gate for one file at a time, and a count of its examinations."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.threads = ThreadPoolExecutor(1)
        self.database = Database.at(root / "registry.sqlite3", on_commit=lambda: None)
        self.database.migrate()
        self.gate = self.make(cpu_seconds=1)

    def make(self, *, cpu_seconds: int, wall_seconds: float = 60) -> Gate:
        return Gate(
            self.database,
            executor=self.threads,
            processes=1,
            cpu_seconds=cpu_seconds,
            wall_seconds=wall_seconds,
            command=(sys.executable, "-c", PROGRAM),
        )

    async def admit(self, script: str, gate: Gate | None = None) -> Verdict:
        path = self.root / "file"
        log = self.root / "examinations"
        path.write_text(f"open({str(log)!r}, 'a').write('{{}}\\n')\n{script}\n")
        async with asyncio.timeout(30):
            return await (gate or self.gate).admit("0" * 63 + "f", path)

    def examinations(self) -> int:
        return (self.root / "examinations").read_text().count("\n")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    yield site
    site.threads.shutdown()
    site.database.close()


async def test_a_program_that_prints_without_end_is_ended_and_the_gate_is_free(site: Site) -> None:
    verdict = await site.admit("print_endlessly()")
    assert "prints more" in verdict.rejected
    assert await site.admit(GOOD) == await site.admit(GOOD)
    assert site.examinations() == 2  # only the good answer is remembered


async def test_a_program_that_neither_prints_nor_ends_is_ended_and_the_gate_is_free(
    site: Site,
) -> None:
    with pytest.raises(Unavailable):
        await site.admit("signal.pause()", site.make(cpu_seconds=1, wall_seconds=0.3))
    assert not (await site.admit(GOOD)).rejected


async def test_a_caller_that_leaves_takes_the_program_along_and_the_gate_is_free(
    site: Site,
) -> None:
    fifo = site.root / "fifo"
    os.mkfifo(fifo)
    # Less than what ends it by itself.
    printing = "os.write(1, b'x' * (1 << 20))\nsignal.pause()"
    script = f"open({str(fifo)!r}, 'w').write(str(os.getpid()) + chr(10))\n{printing}"
    call = asyncio.ensure_future(site.admit(script))
    pid = int(await asyncio.to_thread(fifo.read_text))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (await site.admit(GOOD)).rejected


@pytest.mark.parametrize(
    "script",
    [
        *(f"os.kill(os.getpid(), signal.{name})" for name in ("SIGXCPU", "SIGABRT", "SIGSEGV")),
        "os.kill(os.getpid(), signal.SIGBUS)",
        "answer(rejected='it needs more memory', passing=True)",
    ],
)
async def test_a_limit_or_a_crash_is_told_and_forgotten(site: Site, script: str) -> None:
    assert (await site.admit(script)).rejected
    assert not (await site.admit(GOOD)).rejected


async def test_a_file_that_took_too_long_is_admitted_when_the_limit_is_raised(site: Site) -> None:
    script = f"os.kill(os.getpid(), signal.SIGXCPU) if limit < 5 else {GOOD}"
    assert "CPU time" in (await site.admit(script)).rejected
    assert not (await site.admit(script, site.make(cpu_seconds=5))).rejected


async def test_what_the_rules_say_is_remembered(site: Site) -> None:
    first = await site.admit("answer(rejected='it is no model')")
    assert await site.admit(GOOD) == first == Verdict("it is no model")
    assert site.examinations() == 1


async def test_a_signal_that_the_machine_sent_is_no_verdict(site: Site) -> None:
    with pytest.raises(Unavailable):
        await site.admit(f"os.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert not (await site.admit(GOOD)).rejected


async def test_without_descriptors_the_caller_may_come_again(site: Site) -> None:
    assert not (await site.admit(GOOD)).rejected
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(Unavailable) as caught:
            await site.gate.admit("1" * 64, site.root / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.retry_after_seconds == 5
    assert not (await site.gate.admit("1" * 64, site.root / "file")).rejected


async def test_without_threads_the_program_runs_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not (await site.admit(GOOD)).rejected

    def failing_start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", failing_start)
    assert not (await site.gate.admit("1" * 64, site.root / "file")).rejected


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("raise ValueError('the reason')", 1),
        ("os.write(2, b'the reason'); os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
)
async def test_what_a_failing_program_complains_of_is_in_the_log_alone(
    site: Site, script: str, status: int
) -> None:
    told = ""
    with capture_logs() as logs:
        try:
            told = (await site.admit(f"os.write(2, b'x' * 300_000)\n{script}")).rejected
        except RuntimeError as error:
            told = str(error)
    assert "the reason" not in told
    (log,) = [log for log in logs if "complaints" in log]
    assert log["status"] == status
    assert "the reason" in log["complaints"]
    assert len(log["complaints"]) <= 1024
