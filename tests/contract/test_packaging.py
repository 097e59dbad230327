"""What pyproject.toml promises to whoever installs modelrail."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Lowest version that may be declared, and why (advisories and measured behaviour).
FLOORS = {
    "grpcio": ("1.81", "receive limit and concurrency limiter hold; generated code needs it"),
    "onnx": ("1.21", "external-data path escapes are refused"),
    "onnxruntime": ("1.28", "hardened against path escapes and out-of-bounds model constants"),
    "protobuf": ("6.33.5", "recursion limit holds in json_format; generated code needs it"),
    "torch": ("2.10", "weights_only bypasses are closed"),
}


def extra(name: str) -> list[Requirement]:
    """The requirements of an extra and of the extras that it names, and those of the base."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    found = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for text in extras[current]:
            requirement = Requirement(text)
            if requirement.name == "modelrail":
                waiting.extend(requirement.extras)
            else:
                found.append(requirement)
    return found


def pins(path: Path) -> dict[str, Version]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def closure(requirements: list[Requirement]) -> set[str]:
    """Every distribution that the requirements bring along, as this environment resolves them."""
    names: set[str] = set()
    waiting = [(requirement.name, requirement.extras) for requirement in requirements]
    while waiting:
        name, extras = waiting.pop()
        if (key := canonicalize_name(name)) in names:
            continue
        names.add(key)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # onnxruntime-gpu stands where onnxruntime is installed
        for requirement in map(Requirement, lines):
            environments = [{"extra": extra_name} for extra_name in extras] or [{"extra": ""}]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                waiting.append((requirement.name, requirement.extras))
    return names


@pytest.mark.parametrize("name", FLOORS)
def test_no_declared_floor_lies_below_the_safe_one(name: str) -> None:
    floor, reason = FLOORS[name]
    declared = [
        Version(specifier.version)
        for requirement in [*extra("all"), *extra("inference")]
        if requirement.name in {name, f"{name}-gpu"}
        for specifier in requirement.specifier
        if specifier.operator == ">="
    ]
    assert declared, f"{name} has no floor"
    assert min(declared) >= Version(floor), reason


def test_the_lowest_versions_file_holds_exactly_the_declared_floors() -> None:
    lowest = pins(ROOT / "deploy/constraints-lowest.txt")
    for requirement in [*extra("all"), *extra("test")]:
        floors = [s.version for s in requirement.specifier if s.operator == ">="]
        pinned = lowest[canonicalize_name(requirement.name)]
        if requirement.name == "torch":  # the release that is offered as a CPU build
            assert pinned == Version("2.13.0")
            continue
        assert [pinned] == [Version(floor) for floor in floors], requirement


def test_the_constraints_pin_every_installed_distribution() -> None:
    pinned = pins(ROOT / "deploy/constraints.txt")
    if Version(importlib.metadata.version("grpcio")) != pinned["grpcio"]:
        pytest.skip("this is not the environment that the constraints describe")
    wanted = closure([*extra("all"), *extra("dev")]) - {"onnxruntime-gpu"}
    assert wanted - pinned.keys() <= {"setuptools", "pip"}


def test_the_constraints_leave_room_for_tritonclient() -> None:
    pinned = pins(ROOT / "deploy/constraints.txt")
    assert pinned["protobuf"] < Version("7")
    assert pinned["torch"] == Version("2.13.0")


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("registry", {"torch", "onnxruntime", "onnxruntime-gpu", "scikit-learn"}),
        ("inference", {"torch", "onnx", "sqlalchemy", "scikit-learn"}),
        ("inference-cpu", {"torch", "onnx", "onnxruntime-gpu", "sqlalchemy", "scikit-learn"}),
        ("cli", {"torch", "onnx", "onnxruntime", "sqlalchemy", "structlog"}),
    ],
)
def test_an_image_installs_nothing_that_belongs_to_another(name: str, absent: set[str]) -> None:
    assert not closure(extra(name)) & absent


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("modelrail_registry.__main__", ["torch", "onnxruntime", "onnx", "sklearn"]),
        ("modelrail_trainer.__main__", ["torch", "onnxruntime", "onnx", "sklearn"]),
        ("modelrail_inference.service", ["torch", "onnx", "sqlalchemy", "sklearn"]),
        ("modelrail_inference.__main__", ["grpc", "numpy", "google.protobuf", "onnxruntime"]),
        (
            "modelrail_server.supervision.supervisor",
            ["grpc", "numpy", "google.protobuf", "onnxruntime"],
        ),
        (
            "modelrail.cli.__main__",
            ["torch", "onnxruntime", "onnx", "sqlalchemy", "sklearn", "matplotlib"],
        ),
        ("modelrail.bench", ["torch", "onnxruntime", "onnx", "sqlalchemy", "typer", "matplotlib"]),
        ("modelrail.client", ["torch", "onnxruntime", "onnx", "sqlalchemy", "typer", "structlog"]),
    ],
)
def test_a_process_imports_nothing_that_belongs_to_another(module: str, absent: list[str]) -> None:
    program = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_every_console_script_starts_and_explains_itself() -> None:
    for name in PYPROJECT["project"]["scripts"]:
        script = Path(sys.executable).with_name(name)
        result = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
        assert re.search(r"usage", result.stdout, re.IGNORECASE), name
