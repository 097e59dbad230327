"""The .proto files as another language's team takes them: clean, and each compiles by itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[2] / "protos"
FILES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def buf(*arguments: str) -> str:
    """Run buf on the .proto files; return its complaints."""
    program = shutil.which("buf", path=Path(sys.executable).parent) or shutil.which("buf")
    if program is None:
        pytest.skip("buf (buf-bin) is not installed")
    result = subprocess.run(
        [program, *arguments], cwd=PROTOS, capture_output=True, text=True, check=False
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0 or said, "buf failed and said nothing"
    return said


def test_buf_lint_has_no_complaint() -> None:
    assert buf("lint") == ""


def test_buf_format_would_change_nothing() -> None:
    assert buf("format", "--diff", "--exit-code") == ""


def test_all_services_are_there() -> None:
    assert FILES == [
        "inference/grpc_service.proto",
        "inference/model_config.proto",
        "modelrail/registry/v1/registry.proto",
        "modelrail/trainer/v1/trainer.proto",
    ]


@pytest.mark.parametrize("file", FILES)
def test_a_file_compiles_alone_with_protos_as_the_only_root(file: str, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    # Run as a module, it finds Google's own files as every protoc does.
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]

    result = subprocess.run(
        [*command, f"--descriptor_set_out={tmp_path / 'set'}", "--include_imports", file],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")
