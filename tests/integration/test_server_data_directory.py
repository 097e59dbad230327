"""Services as processes that cannot have their data directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelrail_server.data_directory import owned_data_directory


def _start(service: str, data_dir: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"modelrail_{service}", "--data-dir", str(data_dir)]
    command += ["--grpc-address", f"unix:{folder}/s", "--metrics-address", "127.0.0.1:0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("service", ["registry", "trainer"])
def test_a_folder_that_cannot_be_made_stops_the_start(service: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = _start(service, tmp_path / "file" / "data", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"modelrail-{service}: --data-dir: cannot make {tmp_path}/file/data: Not a directory\n"
    )


@pytest.mark.parametrize("service", ["registry", "trainer"])
def test_a_folder_that_is_owned_stops_the_start(service: str, tmp_path: Path) -> None:
    with owned_data_directory(tmp_path / "data", service=service):
        ended = _start(service, tmp_path / "data", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"modelrail-{service}: --data-dir: {tmp_path}/data is in use by another {service}\n"
    )
