"""The committed Python packages are what `protos/generate.py` makes of the .proto files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("modelrail/oip/v2", "modelrail/registry/v1", "modelrail/trainer/v1")
OIP = ROOT / "clients/modelrail/oip/v2"


def generate(root: Path, *arguments: str, path: Path | None = None) -> tuple[int, str]:
    """Run the generator of the checkout `root`; return its exit status and what it said."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else None
    result = subprocess.run(
        [sys.executable, root / "protos/generate.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the .proto files, the generator and the generated packages."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / "clients" / package,
            tmp_path / "clients" / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return tmp_path


def test_the_committed_packages_are_fresh() -> None:
    status, said = generate(ROOT, "--check")

    assert status == 0, said


def test_check_names_every_stale_file_and_changes_none(checkout: Path) -> None:
    clients = checkout / "clients/modelrail"
    edited = clients / "registry/v1/registry_pb2.pyi"
    edited.write_text(edited.read_text() + "# by hand\n")
    (clients / "trainer/v1/trainer_pb2_grpc.py").unlink()
    (clients / "oip/v2/left_over_pb2.py").touch()

    status, said = generate(checkout, "--check")

    assert status == 1
    assert re.findall(r"^clients/modelrail/(\S+) is out of date", said, re.MULTILINE) == [
        "oip/v2/left_over_pb2.py",
        "registry/v1/registry_pb2.pyi",
        "trainer/v1/trainer_pb2_grpc.py",
    ]
    assert edited.read_text().endswith("# by hand\n")


def test_a_changed_proto_makes_its_packages_stale_until_they_are_generated(checkout: Path) -> None:
    proto = checkout / "protos/inference/grpc_service.proto"
    proto.write_text(proto.read_text() + "\n// New.\nmessage New {}\n")

    status, said = generate(checkout, "--check")
    assert status == 1
    assert "clients/modelrail/oip/v2/grpc_service_pb2.py is out of date" in said

    assert generate(checkout)[0] == 0
    assert generate(checkout, "--check") == (0, "")


def test_another_generator_version_is_refused_before_anything_is_written(
    checkout: Path, tmp_path: Path
) -> None:
    newer = tmp_path / "grpcio_tools-1.85.1.dist-info"
    newer.mkdir()
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: grpcio-tools\nVersion: 1.85.1\n")
    before = (checkout / "clients/modelrail/oip/v2/grpc_service_pb2.py").stat()

    status, said = generate(checkout, path=tmp_path)

    assert status == 1
    assert "grpcio-tools 1.81.x is needed, 1.85.1 is installed" in said
    assert "pip install 'grpcio-tools==1.81.*'" in said
    after = (checkout / "clients/modelrail/oip/v2/grpc_service_pb2.py").stat()
    assert after.st_mtime_ns == before.st_mtime_ns


def test_every_path_of_the_inference_stubs_is_public() -> None:
    text = (OIP / "grpc_service_pb2_grpc.py").read_text()
    rpcs = re.findall(r"^    def (\w+)\(self, request", text, re.MULTILINE)

    paths = re.findall(r"'(/[\w.]+/\w+)'", text)
    handlers = re.findall(r"(?:generic|registered_method)_handlers?\(\s*'([\w.]+)'", text)

    assert len(rpcs) == 20
    # Once in the stub, once in the experimental API.
    assert sorted(paths) == sorted(2 * [f"/inference.GRPCInferenceService/{rpc}" for rpc in rpcs])
    assert handlers == 2 * ["inference.GRPCInferenceService"]


@pytest.mark.parametrize("package", PACKAGES)
def test_generated_packages_say_what_they_are(package: str) -> None:
    first = (ROOT / "clients" / package / "__init__.py").read_text().splitlines()[0]

    assert first.startswith(f'"""Messages and stubs of `{package.replace("/", ".")}`')
