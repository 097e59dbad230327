"""Triton's own load tester, perf_analyzer, measures a running server.

The binary lies in a folder of its own, which the variable `PERF_ANALYZER_FOLDER` names;
`deploy/perf-analyzer.txt` says how to fill it.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

_VARIABLE = "PERF_ANALYZER_FOLDER"
_FOLDER = os.environ.get(_VARIABLE)
_SECONDS = 60
_REQUESTS = 50
_ROW = [1.5, -2.0, 0.0, 1024.0]

pytestmark = pytest.mark.skipif(
    not _FOLDER, reason=f"needs perf_analyzer: {_VARIABLE} is not set, see deploy/perf-analyzer.txt"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that doubles `x`, from a model repository in Triton's layout."""
    folder = tmp_path_factory.mktemp("perf-analyzer")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])],
    )
    version = folder / "repository" / "double" / "1"
    version.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, version / "model.onnx")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "modelrail_inference",
            "--model-repository", str(folder / "repository"), "--provider", "cpu",
            "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0",
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        yield listening(process.stderr)
    finally:
        process.terminate()
        _, log = process.communicate(timeout=_SECONDS)
        assert process.returncode == 0, log


def listening(log: Iterator[str]) -> str:
    """Reads the log until the server listens and its model is loaded; returns the address."""
    address = None
    loaded = False
    heard = []
    for line in log:
        heard.append(line)
        entry = json.loads(line)
        address = address or entry.get("grpc_address")
        loaded = loaded or entry["event"] == "version loaded"
        if address and loaded:
            return str(address)
    pytest.fail("the server ended: " + "".join(heard))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("mode", ["unary", "streaming"])
def test_perf_analyzer_measures_the_server_and_reads_its_statistics(
    address: str, tmp_path: Path, mode: str, batch: int
) -> None:
    assert _FOLDER is not None
    folder = Path(_FOLDER)
    table, export = tmp_path / "table.csv", tmp_path / "requests.json"
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps({"data": [{"x": _ROW}]}))
    result = subprocess.run(
        [
            folder / "bin" / "perf_analyzer", "-m", "double", "-u", address, "-i", "grpc",
            "--input-data", rows,
            "-b", str(batch), "--async", *(["--streaming"] if mode == "streaming" else []),
            "--concurrency-range", "4", "--measurement-mode", "count_windows",
            "--measurement-request-count", str(_REQUESTS),
            # Stable whatever the machine does meanwhile: this is no measurement.
            "--stability-percentage", "999",
            "-f", table, "--verbose-csv", "--profile-export-file", export,
        ],
        env=os.environ | {"LD_LIBRARY_PATH": str(folder / "nvidia" / "cuda_runtime" / "lib")},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )  # fmt: skip
    report = result.stdout
    assert result.returncode == 0, report + result.stderr
    assert "error" not in (report + result.stderr).lower()

    (row,) = csv.DictReader(table.read_text().splitlines())
    assert row["Concurrency"] == "4"
    assert float(row["Inferences/Second"]) > 0

    client, server = report.split("  Server:")
    requests = number(r"Request count: (\d+)", client)
    succeeded = number(r"Successful request count: (\d+)", server)
    assert requests >= _REQUESTS
    assert succeeded >= requests
    assert number(r"Inference count: (\d+)", server) == succeeded * batch
    assert 0 < number(r"Execution count: (\d+)", server) <= succeeded
    for part in ("queue", "compute input", "compute infer", "compute output"):
        assert number(rf"{part} (\d+) usec", server) >= 0
    assert number(r"Avg request latency: (\d+) usec", server) > 0

    (experiment,) = json.loads(export.read_text())["experiments"]
    assert len(experiment["requests"]) >= _REQUESTS
    for request in experiment["requests"]:
        assert request["response_outputs"] == [{"y": [2 * value for value in _ROW] * batch}]


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} is not in {text}"
    return int(found[1])
