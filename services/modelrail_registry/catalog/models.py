"""Models in the database."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from modelrail.names import ModelName
from modelrail_registry.catalog import schema
from modelrail_registry.catalog.events import append_event
from modelrail_registry.catalog.pagination import Page, PageRequest
from modelrail_registry.resources import EventKind, Model
from modelrail_server.errors import Aborted, AlreadyExists, NotFound

_table = schema.models
# Name, uid, number, times and etag, with their tags.
_ROW_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChange:
    """A change of a model; None keeps a field, an empty etag makes it unconditional."""

    name: ModelName
    description: str | None = None
    labels: Mapping[str, str] | None = None
    etag: str = ""


def new_etag() -> str:
    """Returns an etag that was never used before; one made of the content would return with it."""
    return uuid.uuid4().hex


def stale_etag(resource: str, *, expected: str, current: str) -> Aborted:
    """Returns the error for a change that was prepared on an older state."""
    return Aborted(
        f"etag: {resource} changed since: expected etag {expected!r}, it is {current!r} now",
        reason="STALE_ETAG",
        resource=resource,
        expected_etag=expected,
        current_etag=current,
    )


def find_model_row(connection: Connection, name: ModelName) -> Row[Any] | None:
    """Returns the row of a model, None when there is none of that name."""
    return connection.execute(select(_table).where(_table.c.model_id == name.model)).one_or_none()


def require_model_row(connection: Connection, name: ModelName) -> Row[Any]:
    """Returns the row of a model.

    Raises:
        NotFound: There is none of that name.
    """
    row = find_model_row(connection, name)
    if row is None:
        raise NotFound(f"there is no {name}", reason="MODEL_NOT_FOUND", resource=str(name))
    return row


def model_of(row: Row[Any]) -> Model:
    """Returns the resource of a row."""
    return Model(
        name=ModelName(row.model_id),
        uid=row.uid,
        description=row.description,
        labels=json.loads(row.labels),
        latest_version_number=row.latest_version_number,
        create_time=schema.from_microseconds(row.create_time),
        update_time=schema.from_microseconds(row.update_time),
        etag=row.etag,
    )


def list_models(connection: Connection, page: PageRequest) -> Page[Model]:
    """Returns models in the order of their names."""
    query = select(_table).order_by(_table.c.model_id).limit(page.size + 1)
    if page.after is not None:
        query = query.where(_table.c.model_id > page.after)
    with connection.execute(query) as found:
        rows, more = page.take(found, bytes_of=_bytes_of)
    token = page.token(rows[-1].model_id) if more else ""
    return Page(tuple(model_of(row) for row in rows), token)


def _bytes_of(row: Row[Any]) -> int:
    return _ROW_BYTES + len(row.description.encode()) + len(row.labels.encode())


def create_model(
    connection: Connection,
    name: ModelName,
    *,
    description: str = "",
    labels: Mapping[str, str] | None = None,
    now: datetime,
) -> Model:
    """Makes a model without versions.

    Raises:
        AlreadyExists: The name is taken.
    """
    if find_model_row(connection, name) is not None:
        raise AlreadyExists(f"{name} exists", reason="MODEL_EXISTS", resource=str(name))
    moment = schema.to_microseconds(now)
    connection.execute(
        insert(_table).values(
            model_id=name.model,
            uid=str(uuid.uuid4()),
            description=description,
            labels=json.dumps(dict(labels or {}), ensure_ascii=False, sort_keys=True),
            latest_version_number=0,
            create_time=moment,
            update_time=moment,
            etag=new_etag(),
        )
    )
    append_event(connection, EventKind.MODEL_CREATED, name, now=now)
    return model_of(require_model_row(connection, name))


def update_model(connection: Connection, change: ModelChange, *, now: datetime) -> Model:
    """Changes description or labels.

    Raises:
        NotFound: There is no such model.
        Aborted: The etag is stale.
    """
    row = require_model_row(connection, change.name)
    if change.etag and change.etag != row.etag:
        raise stale_etag(str(change.name), expected=change.etag, current=row.etag)
    values: dict[str, object] = {"etag": new_etag(), "update_time": schema.to_microseconds(now)}
    if change.description is not None:
        values["description"] = change.description
    if change.labels is not None:
        values["labels"] = json.dumps(dict(change.labels), ensure_ascii=False, sort_keys=True)
    connection.execute(update(_table).where(_table.c.id == row.id).values(values))
    append_event(connection, EventKind.MODEL_UPDATED, change.name, now=now)
    return model_of(require_model_row(connection, change.name))
