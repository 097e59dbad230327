"""Aliases in the database: the only thing about a version that moves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_registry.catalog import schema
from modelrail_registry.catalog.events import append_event
from modelrail_registry.catalog.models import new_etag, require_model_row, stale_etag
from modelrail_registry.catalog.pagination import Page, PageRequest
from modelrail_registry.catalog.versions import find_version_row
from modelrail_registry.resources import EventKind, ModelAlias
from modelrail_server.errors import FailedPrecondition, FieldViolation, NotFound

_table = schema.aliases


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """A wish to point an alias at a version; an empty etag makes it unconditional."""

    name: ModelAliasName
    version: ModelVersionName
    etag: str = ""
    allow_missing: bool = False


def get_alias(connection: Connection, name: ModelAliasName) -> ModelAlias:
    """Returns an alias.

    Raises:
        NotFound: There is no such model or alias.
    """
    return _alias_of(name.model, _require_row(connection, name))


def list_aliases(connection: Connection, parent: ModelName, page: PageRequest) -> Page[ModelAlias]:
    """Returns the aliases of a model in the order of their names.

    Raises:
        NotFound: There is no such model.
    """
    model = require_model_row(connection, parent)
    query = _query(model.id).order_by(_table.c.alias_id).limit(page.size + 1)
    if page.after is not None:
        query = query.where(_table.c.alias_id > page.after)
    rows = connection.execute(query).all()
    token = page.token(rows[page.size - 1].alias_id) if len(rows) > page.size else ""
    return Page(tuple(_alias_of(parent.model, row) for row in rows[: page.size]), token)


def move_alias(connection: Connection, move: AliasMove, *, now: datetime) -> ModelAlias:
    """Points an alias at a version. Pointing it at the version that it has changes nothing.

    Raises:
        NotFound: There is no such model, or no such alias and it is not to be made.
        FailedPrecondition: The version does not exist.
        Aborted: The etag is stale.
    """
    model = require_model_row(connection, move.name.parent)
    row = _find_row(connection, model.id, move.name.alias)
    if row is None and (move.etag or not move.allow_missing):
        raise _missing(move.name)
    if row is not None and move.etag and move.etag != row.etag:
        raise stale_etag(str(move.name), expected=move.etag, current=row.etag)
    version = find_version_row(connection, move.version)
    if version is None:
        field = "model_alias.model_version"
        description = f"expected a version that exists, got {move.version}"
        raise FailedPrecondition(
            f"{field}: {description}",
            reason="VERSION_NOT_FOUND",
            violations=[FieldViolation(field, description)],
            resource=str(move.version),
        )
    if row is not None and row.version == version.id:
        return _alias_of(move.name.model, row)
    moment = schema.to_microseconds(now)
    values = {"version": version.id, "update_time": moment, "etag": new_etag()}
    if row is None:
        connection.execute(
            insert(_table).values(
                model=model.id, alias_id=move.name.alias, create_time=moment, **values
            )
        )
    else:
        connection.execute(update(_table).where(_table.c.id == row.id).values(**values))
    append_event(
        connection, EventKind.ALIAS_MOVED, move.name, now=now, model_version=str(move.version)
    )
    return get_alias(connection, move.name)


def delete_alias(connection: Connection, name: ModelAliasName, *, etag: str, now: datetime) -> None:
    """Removes an alias.

    Raises:
        NotFound: There is no such model or alias.
        Aborted: The etag is stale.
    """
    row = _require_row(connection, name)
    if etag and etag != row.etag:
        raise stale_etag(str(name), expected=etag, current=row.etag)
    connection.execute(delete(_table).where(_table.c.id == row.id))
    append_event(connection, EventKind.ALIAS_DELETED, name, now=now)


def _query(model: int) -> Any:
    return (
        select(_table, schema.versions.c.number)
        .join(schema.versions, schema.versions.c.id == _table.c.version)
        .where(_table.c.model == model)
    )


def _find_row(connection: Connection, model: int, alias: str) -> Row[Any] | None:
    row: Row[Any] | None = connection.execute(
        _query(model).where(_table.c.alias_id == alias)
    ).one_or_none()
    return row


def _require_row(connection: Connection, name: ModelAliasName) -> Row[Any]:
    model = require_model_row(connection, name.parent)
    row = _find_row(connection, model.id, name.alias)
    if row is None:
        raise _missing(name)
    return row


def _missing(name: ModelAliasName) -> NotFound:
    return NotFound(f"there is no {name}", reason="ALIAS_NOT_FOUND", resource=str(name))


def _alias_of(model_id: str, row: Row[Any]) -> ModelAlias:
    return ModelAlias(
        name=ModelAliasName(model_id, row.alias_id),
        version=ModelVersionName(model_id, row.number),
        create_time=schema.from_microseconds(row.create_time),
        update_time=schema.from_microseconds(row.update_time),
        etag=row.etag,
    )
