"""`modelrail bench` as a user runs it, against a real `modelrail serve`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from modelrail.client import InferenceClient

MODELRAIL = [sys.executable, "-m", "modelrail.cli"]
_SECONDS = 60
_MODEL = "double"


def double(path: Path) -> Path:
    """Writes a model that doubles its input."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        _MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `modelrail serve` serves the model."""
    folder = tmp_path_factory.mktemp("served")
    file, socket = double(folder / f"{_MODEL}.onnx"), f"unix:{folder / 'socket'}"
    output = folder / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [
                *MODELRAIL, "serve", str(file),
                "--grpc-address", socket, "--metrics-address", "127.0.0.1:0",
            ],
            cwd=folder,
            stdout=stream,
            stderr=stream,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _SECONDS
        while "Ctrl-C" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.02)  # Another process writes the file; nothing else tells of it.
        yield socket
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_SECONDS)


def bench(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MODELRAIL, "bench", _MODEL, "--inference", address, *arguments],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


FEW = ("--requests", "50", "--warm-up", "0")


def test_the_figures_are_printed(address: str) -> None:
    answer = bench(address, "--concurrency", "4", "--batch", "2", *FEW)
    assert answer.returncode == 0, answer.stderr
    heading, *lines = answer.stdout.splitlines()
    assert heading.startswith(f"{_MODEL} at {address} (modelrail ")
    assert "ModelInfer, concurrency 4" in heading
    rows = {line.split(maxsplit=1)[0]: line for line in lines}
    assert "50 succeeded, 0 failed" in rows["requests"]
    requests, items = re.findall(r"([\d,.]+) (?:requests|items)/s", rows["throughput"])
    assert float(items.replace(",", "")) == pytest.approx(
        2 * float(requests.replace(",", "")), abs=0.2
    )
    for name in ("p50", "p90", "p99", "p99.9", "mean", "max"):
        assert re.search(rf"\b{name} [\d.]+", rows["latency"])
    per_run, runs = re.findall(r"([\d.]+) items a run \((\d+) runs\)", rows["server"])[0]
    assert float(per_run) * int(runs) == pytest.approx(100, abs=1)
    assert int(runs) <= 50
    assert "1 process" in rows["client"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "300", "--seed", "3"],
        ["--concurrency", "4", "--streaming"],
        ["--rate", "300", "--streaming", "--streams", "2", "--processes", "2"],
    ],
)
def test_json_holds_the_report(address: str, arguments: list[str]) -> None:
    answer = bench(address, *arguments, *FEW, "--json", "--slo", "error_rate<1%")
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert report["succeeded"] == 50
    assert report["failed"] == report["unsent"] == 0
    assert report["streaming"] is ("--streaming" in arguments)
    assert report["latency"]["p50_seconds"] <= report["latency"]["p999_seconds"]
    assert report["server_figures"]["items"] == 50
    assert report["objectives"] == [
        {"objective": "error_rate<1%", "value": 0.0, "met": True, "remark": None}
    ]


def test_recorded_inputs_are_sent(address: str, tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text('{"data": [{"x": [1, 2, 3, 4]}]}')
    answer = bench(address, *FEW, "--input-data", str(file))
    assert answer.returncode == 0, answer.stderr
    file.write_text('{"data": [{"x": [1, 2, 3]}]}')
    answer = bench(address, *FEW, "--input-data", str(file))
    assert answer.returncode == 2
    assert "data[0].x: expected 4 values for the shape [4], got 3" in answer.stderr


@pytest.mark.parametrize(
    ("objective", "status"),
    [("p99<60s", 0), ("throughput>0.1", 0), ("p50<1us", 3), ("throughput>1000000000", 3)],
)
def test_the_exit_status_tells_whether_objectives_are_met(
    address: str, objective: str, status: int
) -> None:
    answer = bench(address, *FEW, "--slo", "error_rate<50%", "--slo", objective)
    assert answer.returncode == status, answer.stderr
    assert f"{objective}: " in answer.stdout
    assert (f"error: objectives: {objective}" in answer.stderr) is (status == 3)


def test_a_sweep_prints_a_row_for_each_load_and_saves_a_plot(address: str, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    answer = bench(
        address, "--sweep", "concurrency:1,2,4", *FEW, "--plot", str(plot), "--slo", "p99<60s"
    )
    assert answer.returncode == 0, answer.stderr
    _, header, *rows = answer.stdout.splitlines()
    assert header.split()[:2] == ["concurrency", "requests/s"]
    assert [row.split()[0] for row in rows[:3]] == ["1", "2", "4"]
    assert all(row.endswith("met") for row in (row.rstrip() for row in rows[:3]))
    assert "highest concurrency that meets the objectives: 4" in answer.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")

    answer = bench(address, "--sweep", "rate:100,200", *FEW, "--json", "--slo", "p50<1us")
    assert answer.returncode == 3
    content = json.loads(answer.stdout)
    assert [point["load"]["rate"] for point in content["points"]] == [100.0, 200.0]
    assert not any(point["objectives"][0]["met"] for point in content["points"])


@pytest.mark.parametrize("loads", ["concurrency:1,2", "concurrency:2,1"])
def test_a_sweep_says_how_many_processes_each_load_took(address: str, loads: str) -> None:
    answer = bench(address, "--sweep", loads, "--processes", "3", *FEW)
    assert answer.returncode == 0, answer.stderr
    _, header, *rows = answer.stdout.splitlines()
    column = header.split().index("processes") - len(header.split())
    assert [(row.split()[0], row.split()[column]) for row in rows[:2]] == [
        (load, load) for load in loads.removeprefix("concurrency:").split(",")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slo", "p99<fast"], "--slo 'p99<fast': expected METRIC<VALUE"),
        (["--slo", "p99<20"], "expected one of us, µs, ms, s"),
        (["--concurrency", "0"], "--concurrency: expected 1 or more, got 0"),
        (["--rate", "0"], "--rate: expected more than 0"),
        (["--rate", "5", "--concurrency", "5"], "expected one of --concurrency, --rate and"),
        (["--sweep", "speed:1,2"], "expected concurrency:N1,N2,… or rate:R1,R2,…"),
        (["--rate", "1e308"], "--rate: expected at most 1000000, got 1e+308"),
        (["--sweep", "concurrency:1.5"], "--sweep concurrency: expected a whole number, got 1.5"),
        (["--sweep", "concurrency:1,nan"], "--sweep concurrency: expected a whole number, got nan"),
        (["--sweep", "concurrency:1,0"], "--sweep concurrency: expected 1 or more, got 0"),
        (["--sweep", "rate:1,5e6"], "--sweep rate: expected at most 1000000, got 5000000.0"),
        (["--sweep", "rate:1", "--max-outstanding", "0"], "--max-outstanding: expected 1 or more"),
        (["--plot", "x.png"], "--plot: expected only together with --sweep"),
        (["--sweep", "rate:1", "--plot", "x.pdf"], "ends in .png or .svg"),
        (["--batch", "1000"], "--batch: double takes at most"),
        (["--shape", "x"], "--shape x: expected NAME:D1,D2"),
        (["--shape", "x:3"], "--shape: x: expected sizes that fit [4]"),
        (["--range", "x:1"], "--range x: expected LOW,HIGH, got 1 numbers"),
        (["--range", "x:0,inf"], "--range: x: expected finite bounds, got 0,inf"),
        (["--range", "x:0,1e40"], "--range: x: expected numbers from -3.40282e+38 to"),
        (["--concurrency", "1000000"], "--concurrency: expected at most 100000, got 1000000"),
        (["--duration", "1e308"], "--duration: expected at most 1000000000, got 1e+308"),
        (["--duration", "1", "--requests", "1"], "--duration, --requests: expected one of the two"),
        (["--processes", "2"], "--processes: expected at most one for each of the 1 requests"),
    ],
)
def test_a_usage_error_says_what_was_expected(
    address: str, arguments: list[str], message: str
) -> None:
    answer = bench(address, *arguments)
    assert answer.returncode == 2, answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_server_or_model_that_is_not_there_is_a_failure(address: str) -> None:
    nowhere = bench("unix:/nowhere/at/all", *FEW)
    assert nowhere.returncode == 1
    assert "error: UNAVAILABLE" in nowhere.stderr
    unknown = subprocess.run(
        [*MODELRAIL, "bench", "Nothing", "--inference", address],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert unknown.returncode == 1
    assert "error: NOT_FOUND" in unknown.stderr


def start_and_wait(address: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a long run in two processes and returns when some of it is answered."""
    with InferenceClient(address) as client:
        before = client.statistics(_MODEL).model_stats[0].inference_count
        process = subprocess.Popen(
            [
                *MODELRAIL, "bench", _MODEL, "--inference", address, "--concurrency", "2",
                "--processes", "2", "--duration", "60", "--warm-up", "0", *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + _SECONDS
        while client.statistics(_MODEL).model_stats[0].inference_count < before + 100:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)  # Only the server knows how far the clients are.
        return process


def test_ctrl_c_prints_what_was_measured_and_leaves_no_process(address: str) -> None:
    process = start_and_wait(address, "--json")
    children = psutil.Process(process.pid).children(recursive=True)
    # A terminal signals the whole group of what runs in it.
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=_SECONDS)
    assert process.returncode == 130, errors
    report = json.loads(output)
    assert report["interrupted"] is True
    assert report["succeeded"] >= 90
    assert report["window_seconds"] < 60
    assert len(children) == 2
    assert not any(child.is_running() for child in children)


def test_client_processes_end_with_the_command_that_is_killed(address: str) -> None:
    process = start_and_wait(address)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=_SECONDS)
    _, alive = psutil.wait_procs(children, timeout=_SECONDS)
    assert not alive
