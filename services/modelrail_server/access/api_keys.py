"""API keys: `mrk_<id>_<secret>`, sent as `authorization: Bearer mrk_…`.

The server keeps a JSON file with the SHA-256 of each secret. A slow password hash would add
nothing: the secrets are 256 random bits, which nobody guesses at any speed, and a slow hash on each
call would be a way to keep the server busy.

    {"keys": [{"id": "ops", "sha256": "…", "permissions": ["read", "write"],
               "expires": "2027-01-01T00:00:00Z"}]}

`python -m modelrail_server.keys create --id ops --permissions read --file keys.json` makes one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelrail_server.access.watched import WatchedFiles
from modelrail_server.errors import Unauthenticated
from modelrail_server.policy import Identity, Permission

__all__ = ["ApiKeys", "KeyFileError", "KeyRecord", "new_key", "read_keys", "write_keys"]

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GRANTED = frozenset({Permission.READ, Permission.WRITE, Permission.INFER, Permission.ADMIN})


class KeyFileError(ValueError):
    """A key file or a record is not as it must be; the message never has a secret."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as the server knows it."""

    id: str
    sha256: str
    """Hash of the secret, in lower-case hexadecimal."""
    permissions: frozenset[Permission]
    expires: datetime | None = None
    """When the key stops to work; None for never. Always with a time zone."""


class ApiKeys:
    """The keys of a file, which is read again when it changes.

    Args:
        file: The key file.
        on_reload_error: Told each time that a changed file could not be used.
        clock: Seconds that only grow, for the pause between two looks at the file.
        now: Seconds since 1970, for expiry.

    Raises:
        KeyFileError: The file is readable by everybody, or is no key file.
        OSError: The file cannot be read.
    """

    def __init__(
        self,
        file: Path,
        *,
        on_reload_error: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._identities = WatchedFiles(
            [file],
            lambda: _identities(read_keys(file)),
            name="api_keys",
            on_error=on_reload_error,
            clock=clock,
        )

    def authenticate(self, authorization: object) -> Identity:
        """Returns who sent this `authorization` metadata.

        Raises:
            Unauthenticated: It is missing or no valid key; unknown id and wrong secret look alike.
        """
        identities = self._identities.content()
        if not isinstance(authorization, str) or not authorization:
            raise Unauthenticated(
                "this server needs a key: send `authorization: Bearer mrk_...`", reason="NO_KEY"
            )
        scheme, _, key = authorization.partition(" ")
        prefix, _, rest = key.strip().partition("_")
        key_id, _, secret = rest.partition("_")
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        known = identities.get(key_id)
        # The comparison runs for unknown ids too, so that its time does not tell which ids exist.
        same = hmac.compare_digest(digest, known[0] if known else "0" * 64)
        if known is None or not same or prefix != "mrk" or scheme.lower() != "bearer":
            raise Unauthenticated("the key is not valid", reason="WRONG_KEY")
        if known[1] is not None and self._now() >= known[1]:
            raise Unauthenticated("the key has expired", reason="EXPIRED_KEY")
        return known[2]


def _identities(
    records: Iterable[KeyRecord],
) -> Mapping[str, tuple[str, float | None, Identity]]:
    return {
        record.id: (
            record.sha256,
            record.expires.timestamp() if record.expires else None,
            Identity(record.id, record.permissions | {Permission.PUBLIC}),
        )
        for record in records
    }


def new_key(
    key_id: str, permissions: Iterable[Permission], *, expires: datetime | None = None
) -> tuple[str, KeyRecord]:
    """Makes a key; the text is for the caller and is kept nowhere.

    Raises:
        KeyFileError: The id, the permissions or the time cannot be used.
    """
    secret = secrets.token_urlsafe(32)
    document = {
        "id": key_id,
        "sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "permissions": sorted(permission.value for permission in permissions),
    }
    if expires is not None:
        document["expires"] = expires.isoformat()
    return f"mrk_{key_id}_{secret}", _record(document, f"key {key_id!r}")


def read_keys(file: Path) -> list[KeyRecord]:
    """Reads a key file.

    Raises:
        KeyFileError: Everybody may read it, or it is no key file.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        # Of the open file, not of the name: it is the same file that is then read.
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise KeyFileError(
                f"{file}: expected a file that others cannot read, got mode {mode:04o}"
            )
        content = stream.read()
    try:
        document = json.loads(content)
    except ValueError as error:
        raise KeyFileError(f"{file}: expected JSON: {error}") from None
    if not isinstance(document, dict) or document.keys() != {"keys"}:
        raise KeyFileError(f'{file}: expected {{"keys": [...]}}')
    if not isinstance(document["keys"], list):
        raise KeyFileError(f"{file}: keys: expected a list")
    records = [_record(item, f"{file}: keys[{i}]") for i, item in enumerate(document["keys"])]
    ids = [record.id for record in records]
    if duplicates := sorted({key_id for key_id in ids if ids.count(key_id) > 1}):
        raise KeyFileError(f"{file}: keys: expected each id once, got twice: {duplicates[0]!r}")
    return records


def write_keys(file: Path, records: Iterable[KeyRecord]) -> None:
    """Replaces a key file as a whole, readable by its owner only.

    Raises:
        OSError: It cannot be written; the old file is still there.
    """
    document: dict[str, list[dict[str, Any]]] = {"keys": []}
    for record in records:
        item: dict[str, Any] = {
            "id": record.id,
            "sha256": record.sha256,
            "permissions": sorted(permission.value for permission in record.permissions),
        }
        if record.expires is not None:
            item["expires"] = record.expires.isoformat()
        document["keys"].append(item)
    # mkstemp makes the file with mode 0600.
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w") as stream:
            json.dump(document, stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)  # noqa: PTH105 the other file functions here work on descriptors
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _record(item: object, place: str) -> KeyRecord:
    if not isinstance(item, dict):
        raise KeyFileError(f"{place}: expected an object")
    if unknown := item.keys() - {"id", "sha256", "permissions", "expires"}:
        raise KeyFileError(f"{place}: unknown field {min(unknown)!r}")
    key_id, sha256, names = item.get("id"), item.get("sha256"), item.get("permissions")
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        raise KeyFileError(f"{place}: id: expected up to 63 of a-z, 0-9 and -, got {key_id!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise KeyFileError(f"{place}: sha256: expected 64 hexadecimal digits")
    granted = {permission.value: permission for permission in _GRANTED}
    if not isinstance(names, list) or not names or not all(map(list(granted).__contains__, names)):
        raise KeyFileError(
            f"{place}: permissions: expected some of {', '.join(sorted(granted))}, got {names!r}"
        )
    permissions = frozenset(granted[name] for name in names)
    return KeyRecord(key_id, sha256, permissions, _expiry(item.get("expires"), place))


def _expiry(text: object, place: str) -> datetime | None:
    if text is None:
        return None
    try:
        expires = datetime.fromisoformat(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise KeyFileError(f"{place}: expires: expected a time like 2027-01-31T12:00:00Z") from None
    if expires.tzinfo is None:
        raise KeyFileError(f"{place}: expires: expected a time with a zone, like …Z, got {text!r}")
    return expires.astimezone(UTC)
