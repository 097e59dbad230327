"""`modelrail serve`, `predict`, `push`, `pull` and `models` as a user runs them."""

from __future__ import annotations

import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

MODELRAIL = [sys.executable, "-m", "modelrail.cli"]
_SECONDS = 60


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A model that doubles its input."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "double.onnx"
    onnx.save(model, path)
    return path


def modelrail(directory: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MODELRAIL, *arguments],
        cwd=directory,
        input=text,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def wait_for(process: subprocess.Popen[bytes], output: Path, text: str) -> str:
    deadline = time.monotonic() + _SECONDS
    while text not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        # Another process writes the file; nothing else tells of its progress.
        time.sleep(0.02)
    return output.read_text()


@pytest.fixture
def served(onnx_file: Path) -> Iterator[str]:
    """Output of `modelrail serve`, whose last line is the command that it suggests."""
    output = onnx_file.parent / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [
                *MODELRAIL, "serve", str(onnx_file),
                "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0",
            ],
            cwd=onnx_file.parent,
            stdout=stream,
            stderr=stream,
        )  # fmt: skip
    try:
        yield wait_for(process, output, "modelrail predict")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(_SECONDS) == 130, output.read_text()


def test_a_file_is_served_and_the_suggested_command_works(served: str, tmp_path: Path) -> None:
    assert "input    x FP32 [-1, 1]" in served
    assert "output   y FP32 [-1, 1]" in served
    (suggestion,) = [line for line in served.splitlines() if "modelrail predict" in line]
    suggested = shlex.split(suggestion)
    assert suggested[:2] == ["modelrail", "predict"]
    answer = modelrail(tmp_path, *suggested[1:])
    assert answer.returncode == 0, answer.stderr
    address = suggested[suggested.index("--inference") + 1]

    as_json = modelrail(
        tmp_path, "predict", "double", "--inference", address, "--input-json", "-", "--json",
        text='{"x": [[3], [4]]}',
    )  # fmt: skip
    assert json.loads(as_json.stdout)["outputs"] == {"y": [[6.0], [8.0]]}

    for arguments, status, message in [
        (["--input", "x=[[1, 2]]"], 1, "expected shape [-1, 1] (-1: any size), got [1, 2]"),
        (["--input", "z=1"], 1, "expected the inputs x FP32 [-1, 1]; got z"),
        ([], 1, "got none"),
        (["--input", "x"], 2, "expected NAME=VALUE"),
        (["--wrong"], 2, "No such option"),
    ]:
        wrong = modelrail(tmp_path, "predict", "double", "--inference", address, *arguments)
        assert wrong.returncode == status, wrong.stderr
        assert message in wrong.stderr
        assert "Traceback" not in wrong.stderr
    unknown = modelrail(tmp_path, "predict", "nope", "--inference", address, "--input", "x=1")
    assert unknown.returncode == 1
    assert "NOT_FOUND" in unknown.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("source", ["-", "@/dev/stdin"])
def test_a_prediction_that_waits_for_its_input_ends_when_it_is_told_to(
    source: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*MODELRAIL, "predict", "double", "--input-json", source],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    try:
        # More than a pipe holds: when all is written, the command reads, and waits for the rest.
        size = 4 * fcntl.fcntl(process.stdin, fcntl.F_GETPIPE_SZ)
        process.stdin.write(b" " * size)
        process.stdin.flush()
        process.send_signal(number)
        assert process.wait(_SECONDS) == 128 + number
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    answer = modelrail(
        tmp_path, "serve", "bad.onnx",
        "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0",
    )  # fmt: skip
    assert answer.returncode == 1
    assert "not a model" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_version_is_pushed_shown_aliased_and_pulled(onnx_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "registry-output"
    address_file = tmp_path / ".modelrail" / "run" / "registry.json"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "modelrail_registry",
                "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0",
                "--data-dir", str(tmp_path / "registry"), "--address-file", str(address_file),
            ],
            stdout=stream,
            stderr=stream,
        )  # fmt: skip
    try:
        wait_for(process, output, '"serving"')
        pushed = modelrail(tmp_path, "push", str(onnx_file), "--alias", "production", "--json")
        assert json.loads(pushed.stdout)["name"] == "models/double/versions/1", pushed.stderr
        for arguments in (
            ["models", "list"],
            ["models", "versions", "double"],
            ["models", "alias", "list", "double"],
        ):
            listed = modelrail(tmp_path, *arguments, "--json")
            assert len(json.loads(listed.stdout)) == 1, listed.stderr
            assert "1" in modelrail(tmp_path, *arguments).stdout
        shown = modelrail(tmp_path, "models", "show", "double@production")
        assert "x FP32 [batch, 1]" in shown.stdout
        pulled = modelrail(tmp_path, "pull", "double@1", "out")
        assert pulled.returncode == 0, pulled.stderr
        assert (tmp_path / "out" / "model.onnx").read_bytes() == onnx_file.read_bytes()
        missing = modelrail(tmp_path, "models", "show", "double@7")
        assert missing.returncode == 1
        assert missing.stderr.startswith("error: NOT_FOUND:")
        assert (
            modelrail(tmp_path, "models", "alias", "delete", "double", "production").returncode == 0
        )
    finally:
        process.terminate()
        process.wait(_SECONDS)
