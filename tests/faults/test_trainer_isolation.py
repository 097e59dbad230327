"""A job that looks around where it has no business: what the process may touch and reach."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelrail_trainer.execution.process import ProcessLauncher
from modelrail_trainer.isolation.kernel import landlock_version
from modelrail_trainer.isolation.limits import JobLimits

# Tries everything and writes down what came of it: the errno, or 0.
PROBE = """
import json, os, signal, socket, sys
from pathlib import Path

world = json.loads(sys.argv[1])
house, own = Path(world["house"]), Path(sys.argv[sys.argv.index("--job-directory") + 1])
outcome = {}


def attempt(name, action, *arguments):
    try:
        action(*arguments)
        outcome[name] = 0
    except OSError as error:
        outcome[name] = error.errno


def connect(family, address):
    with socket.socket(family) as client:
        client.connect(address)


def bind():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))


def run(path):
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "not run")


(own / "program").write_text("#!/bin/sh\\nexit 0\\n")
(own / "program").chmod(0o700)
parent = os.getppid()

attempt("read the database", (house / "trainer.sqlite3").read_bytes)
attempt("read a secret", (house / "secret").read_bytes)
attempt("read another job", (house / "jobs" / "other" / "spec.binpb").read_bytes)
attempt("list the jobs", os.listdir, house / "jobs")
attempt("read the parent's environment", Path(f"/proc/{parent}/environ").read_bytes)
attempt("write outside", (house / "written").write_bytes, b"x")
attempt("empty a secret", os.truncate, house / "emptied", 0)
attempt("remove a file", (house / "removed").unlink)
attempt("move a secret here", os.rename, house / "moved", own / "moved")
attempt("link a secret here", os.link, house / "secret", own / "linked")
attempt("run what it wrote", run, own / "program")
attempt("connect by TCP", connect, socket.AF_INET, ("127.0.0.1", world["port"]))
attempt("listen on TCP", bind)
attempt("connect to an abstract socket", connect, socket.AF_UNIX, "\\0" + world["abstract"])
attempt("signal the parent", os.kill, parent, signal.SIGTERM)

attempt("write its own", (own / "file").write_bytes, b"x")
attempt("move its own", os.rename, own / "file", own / "folder-to-be")
attempt("make a folder", (own / "folder").mkdir)
attempt("move between its folders", os.rename, own / "folder-to-be", own / "folder" / "file")
attempt("read what it may", Path(world["readable"]).read_bytes)
attempt("read Python's library", Path(json.__file__).read_bytes)
attempt("run a program of the system", run, "/bin/true")
attempt("throw away", Path(os.devnull).write_bytes, b"x")
attempt("read about itself", Path("/proc/self/status").read_bytes)
attempt("read about processors", os.listdir, "/sys/devices/system/cpu")
attempt("signal itself", os.kill, os.getpid(), 0)

status = Path("/proc/self/status").read_text()
outcome["no new privileges"] = int(status.split("NoNewPrivs:")[1].split()[0])
(own / "outcome.json").write_text(json.dumps(outcome))
"""

FILES = {
    "read the database": errno.EACCES,
    "read a secret": errno.EACCES,
    "read another job": errno.EACCES,
    "list the jobs": errno.EACCES,
    "read the parent's environment": errno.EACCES,
    "write outside": errno.EACCES,
    "empty a secret": errno.EACCES,
    "remove a file": errno.EACCES,
    "move a secret here": errno.EACCES,
    "link a secret here": errno.EXDEV,
    "run what it wrote": errno.EACCES,
}
NETWORK = {"connect by TCP": errno.EACCES, "listen on TCP": errno.EACCES}
SIGNALS = {"signal the parent": errno.EPERM, "connect to an abstract socket": errno.EPERM}
ALLOWED = (
    "write its own",
    "move its own",
    "make a folder",
    "move between its folders",
    "read what it may",
    "read Python's library",
    "run a program of the system",
    "throw away",
    "read about itself",
    "read about processors",
    "signal itself",
)


@dataclass
class House:
    """A trainer's data directory with everything that a job must not touch."""

    path: Path
    port: int
    abstract: str
    received: list[int] = field(default_factory=list)

    @property
    def own(self) -> Path:
        return self.path / "jobs" / "own"

    @property
    def probe(self) -> tuple[str, ...]:
        world = {
            "house": str(self.path),
            "port": self.port,
            "abstract": self.abstract,
            "readable": str(self.path.parent / "readable"),
        }
        return sys.executable, "-c", PROBE, json.dumps(world)

    async def look_around(self, **environ: str) -> dict[str, int]:
        """Returns what came of a job's attempts."""
        launcher = ProcessLauncher(
            self.probe,
            threads_per_job=1,
            limits=JobLimits(file_bytes=1 << 20),
            environ={"PATH": os.environ["PATH"], **environ},
            readable=[self.path.parent / "readable"],
            hidden=[self.path],
        )
        async with launcher.spawn(self.own) as process:
            process.release()
            ended = await process.wait()
        assert ended.code == 0, (self.own / "worker.log").read_text()
        return self.outcome()

    def outcome(self) -> dict[str, int]:
        outcome: Any = json.loads((self.own / "outcome.json").read_text())
        return {str(name): int(number) for name, number in outcome.items()}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    path = tmp_path / "trainer"
    for job in ("own", "other"):
        (path / "jobs" / job).mkdir(parents=True)
        (path / "jobs" / job / "spec.binpb").write_bytes(b"x")
    for name in ("trainer.sqlite3", "secret", "emptied", "removed", "moved", "../readable"):
        (path / name).write_text("x")
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind("")  # the kernel chooses an abstract name
        unix.listen()
        abstract = unix.getsockname()[1:].decode()
        house = House(path, tcp.getsockname()[1], abstract)
        before = signal.signal(signal.SIGTERM, lambda number, _: house.received.append(number))
        stack.callback(signal.signal, signal.SIGTERM, before)
        yield house


def landlock_or_skip(at_least: int) -> None:
    try:
        version = landlock_version()
    except OSError as error:
        pytest.skip(f"no Landlock in this kernel: {error.strerror}")
    if version < at_least:
        pytest.skip(f"Landlock {version} in this kernel, {at_least} is needed")


def test_the_probe_can_do_everything_where_nothing_holds_it(house: House) -> None:
    done = subprocess.run(
        [*house.probe, "--job-directory", str(house.own)], check=False, timeout=60
    )
    assert done.returncode == 0
    assert set(house.outcome().values()) == {0}
    assert house.received == [signal.SIGTERM]


@pytest.mark.parametrize("data_on_path", [False, True], ids=["", "with the data on Python's path"])
async def test_a_job_uses_no_files_but_its_own(house: House, *, data_on_path: bool) -> None:
    landlock_or_skip(3)
    path = {"PYTHONPATH": str(house.path.parent)} if data_on_path else {}
    (house.path.parent / "shortcut").symlink_to(house.path)
    outcome = await house.look_around(**path)
    expected = FILES
    if data_on_path:  # imports list the directory
        expected = {name: number for name, number in FILES.items() if name != "list the jobs"}
    assert {name: outcome[name] for name in expected} == expected
    assert not (house.path / "written").exists()
    assert (house.path / "emptied").read_text() == "x"


async def test_a_job_has_no_tcp(house: House) -> None:
    landlock_or_skip(4)
    outcome = await house.look_around()
    assert {name: outcome[name] for name in NETWORK} == NETWORK


async def test_a_job_signals_nobody_else(house: House) -> None:
    landlock_or_skip(6)
    outcome = await house.look_around()
    assert {name: outcome[name] for name in SIGNALS} == SIGNALS
    assert house.received == []


async def test_a_job_gets_no_new_privileges_and_does_its_work(house: House) -> None:
    outcome = await house.look_around()
    assert {name: outcome[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, 0)
    assert outcome["no new privileges"] == 1


async def test_a_module_in_the_jobs_directory_does_not_confine_it(house: House) -> None:
    landlock_or_skip(1)
    (house.own / "modelrail_trainer").mkdir()
    (house.own / "modelrail_trainer" / "__init__.py").write_text("raise SystemExit(9)")
    outcome = await house.look_around()
    assert outcome["read a secret"] == errno.EACCES
