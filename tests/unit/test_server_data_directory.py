"""The directory that one running service owns."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from modelrail_server.config import ConfigError
from modelrail_server.data_directory import owned_data_directory


def test_it_is_made_and_a_second_owner_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with owned_data_directory(path, service="registry") as owned:
        assert owned == path
        assert path.is_dir()
        with (
            pytest.raises(ConfigError, match=f"data_dir: {path} is in use by another registry"),
            owned_data_directory(path, service="registry"),
        ):
            raise AssertionError("two own it")
    with owned_data_directory(path, service="registry"):
        pass


def test_a_program_that_outlives_the_service_does_not_keep_the_next_one_out(tmp_path: Path) -> None:
    with owned_data_directory(tmp_path, service="trainer"):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    with child, owned_data_directory(tmp_path, service="trainer"):
        assert child.poll() is None


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/x", "/proc"])
def test_a_folder_that_cannot_be_made_or_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    with (
        pytest.raises(ConfigError, match=f"data_dir: .*{path}"),
        owned_data_directory(path, service="trainer"),
    ):
        raise AssertionError("it was used")


def test_a_folder_that_may_only_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Permissions do not bind the superuser, whom the tests may run as.
    monkeypatch.setattr("os.access", lambda *_: False)
    with (
        pytest.raises(ConfigError, match=f"data_dir: .*written, got {tmp_path}"),
        owned_data_directory(tmp_path, service="trainer"),
    ):
        raise AssertionError("it was used")
