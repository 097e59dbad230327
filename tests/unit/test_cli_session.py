from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from modelrail.cli.session import Session, UsageError, address_file


def write_address(data_dir: Path, pid: int) -> None:
    file = address_file(data_dir, "registry")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps(
            {"service": "registry", "pid": pid, "grpc_address": "file:1", "metrics_address": "m:1"}
        )
    )


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_habit(
    tmp_path: Path,
) -> None:
    assert Session(data_dir=tmp_path, environ={}).address("registry") == "127.0.0.1:8011"
    write_address(tmp_path, os.getpid())
    assert Session(data_dir=tmp_path, environ={}).address("registry") == "file:1"
    environ = {"MODELRAIL_REGISTRY": "env:1"}
    assert Session(data_dir=tmp_path, environ=environ).address("registry") == "env:1"
    session = Session(data_dir=tmp_path, environ=environ, addresses={"registry": "flag:1"})
    assert session.address("registry") == "flag:1"


def test_a_service_is_named_by_a_flag_or_a_variable_but_not_by_a_file(tmp_path: Path) -> None:
    write_address(tmp_path, os.getpid())
    assert not Session(data_dir=tmp_path, environ={"MODELRAIL_TRAINER": ""}).is_named("registry")
    assert Session(environ={"MODELRAIL_REGISTRY": "env:1"}).is_named("registry")
    assert not Session(environ={"MODELRAIL_REGISTRY": "env:1"}).is_named("trainer")
    assert Session(environ={}, addresses={"registry": "flag:1"}).is_named("registry")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "x"}'])
def test_a_broken_address_file_counts_as_none(tmp_path: Path, content: str) -> None:
    write_address(tmp_path, os.getpid())
    address_file(tmp_path, "registry").write_text(content)
    assert Session(data_dir=tmp_path, environ={}).address("registry") == "127.0.0.1:8011"


def test_the_file_of_a_process_that_is_gone_counts_as_none(tmp_path: Path) -> None:
    # The largest pid that Linux hands out is 2**22.
    write_address(tmp_path, 2**22 + 1)
    assert Session(data_dir=tmp_path, environ={}).address("registry") == "127.0.0.1:8011"


def test_a_key_for_another_machine_needs_tls(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("mrk_a_b\n")
    session = Session(
        data_dir=tmp_path, environ={}, addresses={"registry": "10.0.0.1:1"}, api_key_file=key
    )
    with pytest.raises(UsageError, match="plain text"):
        session.connection("registry")
    local = Session(data_dir=tmp_path, environ={}, api_key_file=key)
    assert local.connection("registry").api_key == "mrk_a_b"
