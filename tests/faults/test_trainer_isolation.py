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

from modelrail_trainer.execution.processes.local import LocalExecutor
from modelrail_trainer.handover.journal import IsolationEvent, read_events
from modelrail_trainer.isolation.confinement import Confinement
from modelrail_trainer.isolation.kernel import landlock_version
from modelrail_trainer.isolation.layer import Layer, LayerName
from modelrail_trainer.isolation.limits import JobLimits

Layers = dict[LayerName, Layer]

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


def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", world["port"]))


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
attempt("send by UDP", send)
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

    async def look_around(
        self, limits: JobLimits | None = None, /, **environ: str
    ) -> tuple[dict[str, int], Layers]:
        """Returns what came of a job's attempts, and the layers that its process found."""
        executor = LocalExecutor(
            self.probe,
            threads_per_job=1,
            limits=limits or JobLimits(file_bytes=1 << 20),
            environ={"PATH": os.environ["PATH"], **environ},
            readable=[self.path.parent / "readable"],
            hidden=[self.path],
        )
        async with executor.submit(self.own) as process:
            process.release()
            ended = await process.wait()
        assert ended.code == 0, (self.own / "worker.log").read_text()
        return self.outcome(), self.layers()

    def layers(self) -> Layers:
        (event, *_), _ = read_events(self.own / "events.jsonl", 0)
        assert isinstance(event, IsolationEvent)
        return {layer.name: layer for layer in event.layers}

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


def skip_without(name: LayerName, layers: Layers) -> None:
    if not layers[name].active:
        pytest.skip(f"{name} is not active here: {layers[name].detail}")


def test_the_probe_can_do_everything_where_nothing_holds_it(house: House) -> None:
    done = subprocess.run(
        [*house.probe, "--job-directory", str(house.own)], check=False, timeout=60
    )
    assert done.returncode == 0
    assert set(house.outcome().values()) == {0}
    assert house.received == [signal.SIGTERM]


@pytest.mark.parametrize("data_on_path", [False, True], ids=["", "with the data on Python's path"])
async def test_a_job_uses_no_files_but_its_own(house: House, *, data_on_path: bool) -> None:
    path = {"PYTHONPATH": str(house.path.parent)} if data_on_path else {}
    (house.path.parent / "shortcut").symlink_to(house.path)
    outcome, layers = await house.look_around(**path)
    skip_without(LayerName.FILES, layers)
    expected = FILES
    if data_on_path:  # imports list the directory
        expected = {name: number for name, number in FILES.items() if name != "list the jobs"}
    assert {name: outcome[name] for name in expected} == expected
    assert not (house.path / "written").exists()
    assert (house.path / "emptied").read_text() == "x"


async def test_a_job_has_no_tcp(house: House) -> None:
    outcome, layers = await house.look_around()
    skip_without(LayerName.NETWORK, layers)
    assert {name: outcome[name] for name in NETWORK} == NETWORK


async def test_a_job_whose_network_is_its_own_has_no_udp_either(house: House) -> None:
    outcome, layers = await house.look_around()
    layer = layers[LayerName.NETWORK]
    if "namespace" not in layer.detail:
        pytest.skip(f"there is no network namespace here: {layer.detail}")
    assert layer.active
    assert outcome["send by UDP"] == errno.ENETUNREACH


def test_processes_that_talk_to_each_other_keep_the_network(house: House) -> None:
    confinement = Confinement(
        directory=house.own, limits=JobLimits(file_bytes=1 << 20), has_tcp=True
    )
    command = [sys.executable, "-m", "modelrail_trainer.isolation", confinement.to_json()]
    udp = (
        "import socket\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    )
    subprocess.run([*command, sys.executable, "-c", udp], check=True, timeout=60)
    assert not house.layers()[LayerName.NETWORK].active


async def test_a_job_signals_nobody_else(house: House) -> None:
    outcome, layers = await house.look_around()
    skip_without(LayerName.SIGNALS, layers)
    expected = dict(SIGNALS)
    if "namespace" in layers[LayerName.NETWORK].detail:
        expected["connect to an abstract socket"] = errno.ECONNREFUSED  # there is none of the name
    assert {name: outcome[name] for name in expected} == expected
    assert house.received == []


async def test_a_job_gets_no_new_privileges_and_does_its_work(house: House) -> None:
    outcome, layers = await house.look_around()
    assert {name: outcome[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, 0)
    assert outcome["no new privileges"] == 1
    assert layers[LayerName.NO_NEW_PRIVILEGES].active


async def test_a_module_in_the_jobs_directory_does_not_confine_it(house: House) -> None:
    (house.own / "modelrail_trainer").mkdir()
    (house.own / "modelrail_trainer" / "__init__.py").write_text("raise SystemExit(9)")
    _, layers = await house.look_around()
    assert set(layers) == set(LayerName)


async def test_every_layer_is_told_as_the_process_found_it(house: House) -> None:
    _, layers = await house.look_around()
    told = {name for name, layer in layers.items() if layer.active}
    certain = {
        LayerName.SESSION,
        LayerName.CLEAN_ENVIRONMENT,
        LayerName.FILE_SIZE,
        LayerName.NO_NEW_PRIVILEGES,
    }
    without_a_limit = {LayerName.MEMORY, LayerName.CPU_TIME, LayerName.PROCESSES}
    try:
        version = landlock_version()
    except OSError:
        version = 0
    since = {LayerName.FILES: 1, LayerName.NETWORK: 4, LayerName.SIGNALS: 6}
    if "namespace" in layers[LayerName.NETWORK].detail:
        certain.add(LayerName.NETWORK)
    assert told == certain | {name for name, first in since.items() if version >= first}
    assert {layers[name].detail for name in without_a_limit} == {"no limit is set"}


async def test_limits_that_hold_are_told_and_that_of_processes_not_for_root(house: House) -> None:
    limits = JobLimits(file_bytes=1 << 20, memory_bytes=1 << 30, cpu_seconds=60, processes=4096)
    _, layers = await house.look_around(limits)
    assert layers[LayerName.MEMORY].detail == f"RLIMIT_DATA, {1 << 30} bytes for each process"
    assert layers[LayerName.CPU_TIME].active
    assert layers[LayerName.PROCESSES].active == (os.geteuid() != 0)


def test_a_process_that_was_started_carelessly_says_so(house: House) -> None:
    confinement = Confinement(directory=house.own, limits=JobLimits(file_bytes=1 << 20))
    command = [sys.executable, "-m", "modelrail_trainer.isolation", confinement.to_json(), "true"]
    environ = {"PATH": os.environ["PATH"], "TOKEN": "x"}
    subprocess.run(command, check=True, timeout=60, env=environ)
    layers = house.layers()
    assert not layers[LayerName.SESSION].active
    assert layers[LayerName.CLEAN_ENVIRONMENT] == Layer(
        LayerName.CLEAN_ENVIRONMENT, False, "sees PATH, TOKEN as well"
    )
