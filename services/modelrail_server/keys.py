"""`python -m modelrail_server.keys`: makes, lists and revokes keys in a key file."""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelrail_server.access.api_keys import KeyFileError, KeyRecord, new_key, read_keys, write_keys
from modelrail_server.policy import Permission

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (KeyFileError, OSError) as error:
        print(f"modelrail_server.keys: {error}", file=sys.stderr)
        return 1
    return status


def _create(arguments: argparse.Namespace) -> int:
    with _locked(arguments.file):
        records = read_keys(arguments.file) if arguments.file.exists() else []
        if any(record.id == arguments.id for record in records):
            raise KeyFileError(f"id: {arguments.id!r} exists; revoke it first")
        expires = arguments.expires
        text, record = new_key(arguments.id, arguments.permissions, expires=expires)
        write_keys(arguments.file, [*records, record])
    print(text)
    print("This is the only time that the key is shown.", file=sys.stderr)
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    with _locked(arguments.file):
        records = read_keys(arguments.file)
        kept = [record for record in records if record.id != arguments.id]
        if len(kept) == len(records):
            raise KeyFileError(f"id: {arguments.id!r} is not in {arguments.file}")
        write_keys(arguments.file, kept)
    print(f"{arguments.id} is revoked; servers notice within a second or two", file=sys.stderr)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    rows = [_row(record) for record in read_keys(arguments.file)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print(
            f"{row['id']:20} {','.join(row['permissions']):24} {row['expires'] or 'never expires'}"
        )
    return 0


def _row(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "permissions": sorted(permission.value for permission in record.permissions),
        "expires": record.expires.isoformat() if record.expires else None,
    }


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lets one writer at a time read and replace the file, so that no new key is lost."""
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _permissions(text: str) -> list[Permission]:
    try:
        return [Permission(name.strip()) for name in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected some of read,write,infer,admin, got {text!r}"
        ) from None


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a time like 2027-01-31T12:00:00Z, got {text!r}"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modelrail_server.keys", description="Keys of the callers of a server."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, help_text in (
        ("create", _create, "make a key, print it once, and add it to the file"),
        ("revoke", _revoke, "take a key out of the file"),
        ("list", _list, "show ids, permissions and expiry"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=run)
        command.add_argument("--file", type=Path, required=True, help="key file")
        if name == "list":
            command.add_argument("--json", action="store_true", help="print JSON")
        else:
            command.add_argument("--id", required=True, help="name of the key: a-z, 0-9 and -")
        if name == "create":
            command.add_argument(
                "--permissions", type=_permissions, required=True, help="read,write,infer,admin"
            )
            command.add_argument("--expires", type=_time, help="time like 2027-01-31T12:00:00Z")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
