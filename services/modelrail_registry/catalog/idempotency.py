"""Request ids (https://google.aip.dev/155): a repeated call returns the first call's result.

The id is stored in the transaction of the change itself, so there is no moment at which one exists
without the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, select

from modelrail_registry.catalog import schema
from modelrail_server.errors import AlreadyExists

KEPT = timedelta(hours=48)


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A client's request id, and the SHA-256 of the request that it came with."""

    request_id: str
    digest: str


def find_result(connection: Connection, key: RequestKey | None) -> str | None:
    """Returns the stored result of a request that was made before, None when it is new.

    Raises:
        AlreadyExists: The id belongs to another request.
    """
    if key is None:
        return None
    table = schema.requests
    row = connection.execute(
        select(table.c.digest, table.c.result).where(table.c.request_id == key.request_id)
    ).one_or_none()
    if row is None:
        return None
    if row.digest != key.digest:
        raise AlreadyExists(
            f"request_id {key.request_id} was used for another request before",
            reason="REQUEST_ID_REUSED",
            request_id=key.request_id,
        )
    return str(row.result)


def store_result(
    connection: Connection, key: RequestKey | None, result: str, now: datetime
) -> None:
    """Stores the result of a request, and forgets requests that are older than `KEPT`."""
    if key is None:
        return
    table = schema.requests
    oldest = schema.to_microseconds(now - KEPT)
    connection.execute(delete(table).where(table.c.create_time < oldest))
    connection.execute(
        insert(table).values(
            request_id=key.request_id,
            digest=key.digest,
            result=result,
            create_time=schema.to_microseconds(now),
        )
    )
