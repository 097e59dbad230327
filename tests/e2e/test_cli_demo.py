"""`modelrail demo` and `modelrail train` as a user runs them, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

MODELRAIL = [sys.executable, "-m", "modelrail.cli"]
_SECONDS = 150


class Run:
    """A command in a session of its own, whose output can be waited for."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.output = directory / f"output-{time.monotonic_ns()}"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*MODELRAIL, *arguments],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def until(self, text: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while text not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            # Another process writes the file; nothing else tells of its progress.
            time.sleep(0.02)

    def finish(self) -> int:
        return self.process.wait(_SECONDS)

    def kill(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def run(*arguments: str) -> Run:
        runs.append(Run(tmp_path, *arguments))
        return runs[-1]

    yield run
    for started in runs:
        if started.process.poll() is None:
            started.kill()


def processes_of(directory: Path) -> list[str]:
    """Returns the command lines of living processes that have to do with a directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "status", "cwd"]):
        line = " ".join(process.info["cmdline"] or ())
        concerned = str(directory) in line or (process.info["cwd"] or "").startswith(str(directory))
        if concerned and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def service_pid(directory: Path, service: str) -> int:
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if f"modelrail_{service}" in line and any(str(directory) in part for part in line):
            return int(process.pid)
    raise AssertionError(f"no {service} runs")


def test_the_demo_serves_what_it_trained_and_a_second_run_publishes_version_2(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    for number in (1, 2):
        run = start("demo", "--data-dir", str(tmp_path / "data"))
        assert run.finish() == 0, run.text
        assert f"published models/digits/versions/{number}" in run.text
        accuracy = re.search(r"served accuracy (\d\.\d+) on", run.text)
        assert accuracy is not None
        assert float(accuracy[1]) >= 0.97
        assert "the same as the trainer measured" in run.text
        assert "latency p50" in run.text
        assert run.text.count(" epoch ") >= 10
        assert "Traceback" not in run.text
        assert "\x1b" not in run.text
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    "moment",
    ["1/5 start", "registry   grpc", "submitted", "job trains", "job exports", "3/5", "4/5"],
)
def test_ctrl_c_leaves_nothing_behind(
    start: Callable[..., Run], tmp_path: Path, moment: str
) -> None:
    run = start("demo", "--data-dir", str(tmp_path / "data"))
    run.until(moment)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.text
    assert "Traceback" not in run.text
    assert processes_of(tmp_path) == []


def test_a_killed_demo_takes_its_services_along(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start("demo", "--data-dir", str(tmp_path / "data"))
    run.until("registry   grpc")
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 30
    while any("modelrail_" in line for line in processes_of(tmp_path)):
        assert time.monotonic() < deadline, processes_of(tmp_path)
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("service", "moment"),
    [
        pytest.param("registry", "epoch  3/", marks=pytest.mark.slow),
        ("registry", "job exports"),
        ("trainer", "epoch  3/"),
        pytest.param("trainer", "job exports", marks=pytest.mark.slow),
        pytest.param("inference", "epoch  3/", marks=pytest.mark.slow),
        ("inference", "published models/"),
        pytest.param("inference", "4/5", marks=pytest.mark.slow),
    ],
)
def test_the_demo_survives_the_death_of_a_service(
    start: Callable[..., Run], tmp_path: Path, service: str, moment: str
) -> None:
    run = start("demo", "--data-dir", str(tmp_path / "data"))
    run.until(moment)
    os.kill(service_pid(tmp_path, service), signal.SIGKILL)
    assert run.finish() == 0, run.text
    assert f"{service} ended unexpectedly" in run.text
    assert "published models/digits/versions/1" in run.text
    assert "the same as the trainer measured" in run.text
    assert processes_of(tmp_path) == []


def test_two_stacks_do_not_share_a_data_directory(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    first = start("demo", "--data-dir", str(tmp_path / "data"))
    first.until("registry   grpc")
    second = start("demo", "--data-dir", str(tmp_path / "data"))
    assert second.finish() == 1
    assert f"another modelrail (process {first.process.pid})" in second.text
    first.process.send_signal(signal.SIGTERM)
    assert first.finish() == 143


@pytest.mark.usefixtures("usual_addresses")
@pytest.mark.timeout(300, func_only=True)  # waiting for the addresses is not this test's
def test_training_a_line_finds_its_weight_and_bias(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start("train", "examples/linear.yaml", "--data-dir", str(tmp_path / "data"))
    assert run.finish() == 0, run.text
    losses = [
        float(loss) for loss in re.findall(r"epoch +\d+/100  train loss ([\d.e-]+)", run.text)
    ]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert "published models/linear/versions/1" in run.text
    # The service answers for x = 1: weight + bias.
    answer = re.search(r"^0 +([\d.]+)$", run.text, re.MULTILINE)
    assert answer is not None
    assert float(answer[1]) == pytest.approx(1.5, abs=0.05)
    assert processes_of(tmp_path) == []
