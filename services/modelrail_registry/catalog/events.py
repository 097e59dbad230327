"""The history of changes: written with every change, read by watchers at their own speed.

A watcher reads the table, so a slow one costs no memory; the feed only tells it when reading is
worth while.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_registry.catalog import schema
from modelrail_registry.resources import Event, EventKind
from modelrail_server.errors import InvalidArgument, OutOfRange

_LONGEST_TOKEN = 128


def append_event(
    connection: Connection,
    kind: EventKind,
    resource: ModelName | ModelVersionName | ModelAliasName,
    *,
    now: datetime,
    model_version: str = "",
) -> None:
    """Adds an event to the history, in the transaction of the change that it tells of."""
    registry = schema.registry
    sequence = connection.execute(
        update(registry)
        .values(last_sequence=registry.c.last_sequence + 1)
        .returning(registry.c.last_sequence)
    ).scalar_one()
    connection.execute(
        insert(schema.events).values(
            sequence=sequence,
            kind=kind.value,
            model_id=resource.model,
            resource=str(resource),
            model_version=model_version,
            create_time=schema.to_microseconds(now),
        )
    )


def last_sequence(connection: Connection) -> int:
    """Returns the number of the newest event, 0 when there is none."""
    return int(connection.execute(select(schema.registry.c.last_sequence)).scalar_one())


def read_events(
    connection: Connection, after: int, *, models: Collection[str], limit: int
) -> tuple[Event, ...]:
    """Returns up to `limit` events behind a place; empty `models` means every model."""
    table = schema.events
    query = select(table).where(table.c.sequence > after).order_by(table.c.sequence).limit(limit)
    if models:
        query = query.where(table.c.model_id.in_(models))
    return tuple(
        Event(
            sequence=row.sequence,
            kind=EventKind(row.kind),
            resource=row.resource,
            model_version=row.model_version,
            create_time=schema.from_microseconds(row.create_time),
        )
        for row in connection.execute(query)
    )


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """A place in the history of one database."""

    database_uid: str
    sequence: int

    @classmethod
    def parse(cls, text: str) -> ResumeToken:
        """Reads a token.

        Raises:
            InvalidArgument: This registry never gave such a token out.
        """
        wrong = InvalidArgument.field(
            "resume_token", "expected a resume_token of this service, got another text"
        )
        if len(text) > _LONGEST_TOKEN:
            raise wrong
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            decoded = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        except (ValueError, binascii.Error):
            raise wrong from None
        uid, colon, number = decoded.partition(":")
        if not colon or len(uid) != 36 or not number.isdecimal() or len(number) > 18:
            raise wrong
        return cls(uid, int(number))

    def check(self, database_uid: str, newest: int) -> int:
        """Returns the place when the history of this database holds it.

        Raises:
            OutOfRange: The token is of another database, or lies ahead of the history (the database
                was restored from a copy). The caller lists again and watches with an empty token.
        """
        if self.database_uid != database_uid:
            raise OutOfRange(
                "resume_token: expected a token of this registry, got one of another registry; "
                "list the resources and watch with an empty token",
                reason="RESUME_TOKEN_UNKNOWN",
            )
        if self.sequence > newest:
            raise OutOfRange(
                f"resume_token: expected a place up to {newest}, got {self.sequence}; "
                "list the resources and watch with an empty token",
                reason="RESUME_TOKEN_UNKNOWN",
                expected=str(newest),
                got=str(self.sequence),
            )
        return self.sequence

    def __str__(self) -> str:
        text = f"{self.database_uid}:{self.sequence}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


class Feed:
    """Wakes watchers after a commit.

    Args:
        loop: The event loop that the watchers run on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """Wakes every watcher. May be called from any thread, after the commit and never before."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """Returns what the next commit sets. Taken before the table is read, it misses none."""
        return self._changed
