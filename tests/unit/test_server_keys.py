"""API keys: what is accepted, what is refused, and files that change."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelrail_server.access.api_keys import (
    ApiKeys,
    KeyFileError,
    KeyRecord,
    new_key,
    read_keys,
    write_keys,
)
from modelrail_server.errors import Unauthenticated
from modelrail_server.keys import main
from modelrail_server.policy import Permission


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def store(file: Path, *permissions: Permission, key_id: str = "ops") -> str:
    text, record = new_key(key_id, permissions or [Permission.READ])
    write_keys(file, [record])
    return text


def reason(keys: ApiKeys, authorization: object) -> str:
    with pytest.raises(Unauthenticated) as error:
        keys.authenticate(authorization)
    return error.value.reason


def test_a_key_identifies_its_holder(file: Path) -> None:
    text = store(file, Permission.READ, Permission.INFER)
    caller = ApiKeys(file).authenticate(f"Bearer {text}")
    assert caller.name == "ops"
    assert caller.permissions == {Permission.PUBLIC, Permission.READ, Permission.INFER}


def test_the_file_has_no_secret_and_nobody_else_can_read_it(file: Path) -> None:
    text = store(file)
    assert text.split("_", 2)[2] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(text.split("_", 2)[2]) == 43


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: None, "NO_KEY"),
        (lambda text: "", "NO_KEY"),
        (lambda text: b"Bearer x", "NO_KEY"),
        (lambda text: text, "WRONG_KEY"),
        (lambda text: f"Basic {text}", "WRONG_KEY"),
        (lambda text: f"Bearer {text}x", "WRONG_KEY"),
        (lambda text: f"Bearer {text[:-1]}", "WRONG_KEY"),
        (lambda text: "Bearer " + text.replace("mrk_", "xyz_"), "WRONG_KEY"),
        (lambda text: "Bearer " + text.replace("_ops_", "_dev_"), "WRONG_KEY"),
        (lambda text: "Bearer mrk_ops_", "WRONG_KEY"),
        (lambda text: "Bearer \udc80", "WRONG_KEY"),
        (lambda text: "Bearer", "WRONG_KEY"),
    ],
)
def test_anything_else_is_refused(file: Path, change, expected: str) -> None:  # type: ignore[no-untyped-def]
    text = store(file)
    assert reason(ApiKeys(file), change(text)) == expected


def test_a_key_works_until_it_expires(file: Path) -> None:
    now = Clock()
    expires = datetime(2027, 1, 1, tzinfo=UTC)
    text, record = new_key("ops", [Permission.READ], expires=expires)
    write_keys(file, [record])
    keys = ApiKeys(file, now=now)
    now.seconds = expires.timestamp() - 1
    assert keys.authenticate(f"Bearer {text}").name == "ops"
    now.seconds = expires.timestamp()
    assert reason(keys, f"Bearer {text}") == "EXPIRED_KEY"


def test_a_changed_file_counts_at_the_next_look(file: Path) -> None:
    clock = Clock()
    old = store(file)
    keys = ApiKeys(file, clock=clock)
    new = store(file, key_id="new")
    assert keys.authenticate(f"Bearer {old}").name == "ops"
    clock.seconds = 1.0
    assert keys.authenticate(f"Bearer {new}").name == "new"
    assert reason(keys, f"Bearer {old}") == "WRONG_KEY"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"keys": [{"id": "a"}]}', b"\xff", None])
def test_a_changed_file_that_is_bad_leaves_the_old_keys_in_force(
    file: Path, content: bytes | None
) -> None:
    clock, failures = Clock(), []
    text = store(file)
    keys = ApiKeys(file, clock=clock, on_reload_error=lambda: failures.append(1))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    clock.seconds = 1.0
    assert keys.authenticate(f"Bearer {text}").name == "ops"
    assert failures == [1]
    new = store(file, key_id="new")
    clock.seconds = 2.0
    assert keys.authenticate(f"Bearer {new}").name == "new"


def test_a_file_that_everybody_can_read_is_refused(file: Path) -> None:
    store(file)
    file.chmod(0o644)
    with pytest.raises(KeyFileError, match="mode 0644"):
        ApiKeys(file)


GOOD = {"id": "a", "sha256": "0" * 64, "permissions": ["read"]}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ([{**GOOD, "id": "A"}], "id: expected"),
        ([{**GOOD, "id": "a_b"}], "id: expected"),
        ([{**GOOD, "sha256": "0"}], "sha256: expected 64"),
        ([{**GOOD, "permissions": []}], "permissions: expected some of"),
        ([{**GOOD, "permissions": ["root"]}], "permissions: expected some of"),
        ([{**GOOD, "permissions": ["public"]}], "permissions: expected some of"),
        ([{**GOOD, "permissions": [["read"]]}], "permissions: expected some of"),
        ([{**GOOD, "expires": "soon"}], "expires: expected a time"),
        ([{**GOOD, "expires": "2027-01-01T00:00:00"}], "expires: expected a time with a zone"),
        ([{**GOOD, "expired": "x"}], "unknown field 'expired'"),
        ([GOOD, GOOD], "expected each id once"),
        (["a"], "expected an object"),
        ({}, "expected a list"),
    ],
)
def test_a_file_with_a_wrong_record_is_refused_with_its_place(
    file: Path, keys: object, problem: str
) -> None:
    file.write_text(json.dumps({"keys": keys}))
    file.chmod(0o600)
    with pytest.raises(KeyFileError, match=problem):
        read_keys(file)


def test_records_survive_the_file(file: Path) -> None:
    expires = datetime(2027, 1, 1, tzinfo=UTC)
    records = [KeyRecord("a", "0" * 64, frozenset({Permission.ADMIN}), expires)]
    write_keys(file, records)
    assert read_keys(file) == records


def test_the_command_makes_lists_and_revokes_keys(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--file", str(file)]
    assert main(["create", "--id", "ops", "--permissions", "read,admin", *place]) == 0
    text = capsys.readouterr().out.strip()
    assert ApiKeys(file).authenticate(f"Bearer {text}").name == "ops"
    assert main(["create", "--id", "ops", "--permissions", "read", *place]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["list", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"id": "ops", "permissions": ["admin", "read"], "expires": None}
    ]
    assert main(["revoke", "--id", "ops", *place]) == 0
    assert main(["revoke", "--id", "ops", *place]) == 1
    assert read_keys(file) == []


def test_the_command_refuses_permissions_that_do_not_exist(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["create", "--id", "ops", "--permissions", "root", "--file", str(file)])
    assert "expected some of read,write,infer,admin, got 'root'" in capsys.readouterr().err
    assert main(["create", "--id", "ops", "--permissions", "public", "--file", str(file)]) == 1
    assert not file.exists()
