"""Versions in the database: inserted whole, read, and never changed."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Label, Row, Table, func, insert, select, update

from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_registry.catalog import schema
from modelrail_registry.catalog.documents import dump_content, load_content
from modelrail_registry.catalog.events import append_event
from modelrail_registry.catalog.models import require_model_row
from modelrail_registry.catalog.pagination import Page, PageRequest
from modelrail_registry.resources import EventKind, File, ModelVersion, VersionContent
from modelrail_server.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound

# The most that each takes in a reply.
_ROW_BYTES = 256
_FILE_BYTES = 512
_ALIAS_BYTES = 66


def find_version_row(connection: Connection, name: ModelVersionName) -> Row[Any] | None:
    """Returns the row of a version, None when there is none of that name."""
    table = schema.versions
    return connection.execute(
        select(table)
        .join(schema.models, schema.models.c.id == table.c.model)
        .where(schema.models.c.model_id == name.model, table.c.number == name.number)
    ).one_or_none()


def get_version(connection: Connection, name: ModelVersionName | ModelAliasName) -> ModelVersion:
    """Returns a version by its number, or the one that an alias points at.

    Raises:
        NotFound: There is no such model, version or alias.
    """
    model = require_model_row(connection, name.parent)
    versions, aliases = schema.versions, schema.aliases
    query = select(versions).where(versions.c.model == model.id)
    if isinstance(name, ModelVersionName):
        query = query.where(versions.c.number == name.number)
    else:
        query = query.join(aliases, aliases.c.version == versions.c.id).where(
            aliases.c.model == model.id, aliases.c.alias_id == name.alias
        )
    row = connection.execute(query).one_or_none()
    if row is None:
        kind = "VERSION" if isinstance(name, ModelVersionName) else "ALIAS"
        raise NotFound(f"there is no {name}", reason=f"{kind}_NOT_FOUND", resource=str(name))
    return _versions_of(connection, name.model, [row])[0]


def list_versions(
    connection: Connection, parent: ModelName, page: PageRequest
) -> Page[ModelVersion]:
    """Returns the versions of a model, the newest first.

    Raises:
        NotFound: There is no such model.
    """
    model = require_model_row(connection, parent)
    table = schema.versions
    query = (
        select(table, _count(schema.files, "file_count"), _count(schema.aliases, "alias_count"))
        .where(table.c.model == model.id)
        .order_by(table.c.number.desc())
        .limit(page.size + 1)
    )
    if page.after is not None:
        if not page.after.isdecimal() or len(page.after) > 18:
            raise InvalidArgument.field("page_token", "expected a next_page_token of this list")
        query = query.where(table.c.number < int(page.after))
    with connection.execute(query) as found:
        rows, more = page.take(found, bytes_of=_bytes_of)
    token = page.token(str(rows[-1].number)) if more else ""
    return Page(tuple(_versions_of(connection, parent.model, rows)), token)


def _count(table: Table, label: str) -> Label[int]:
    """Returns the column with the number of rows of `table` that belong to a version."""
    count = select(func.count()).select_from(table).where(table.c.version == schema.versions.c.id)
    return count.scalar_subquery().label(label)


def _bytes_of(row: Row[Any]) -> int:
    files, aliases = row.file_count * _FILE_BYTES, row.alias_count * _ALIAS_BYTES
    return _ROW_BYTES + len(row.content.encode()) + int(files) + int(aliases)


def insert_version(
    connection: Connection, parent: ModelName, content: VersionContent, *, now: datetime
) -> ModelVersion:
    """Adds a version with the next number of its model.

    The number is taken by the statement that counts, inside this transaction: two publishers cannot
    get the same one, and one that fails leaves no gap.

    Raises:
        NotFound: There is no such model.
        FailedPrecondition: The version that this one claims to be made from does not exist.
    """
    model = require_model_row(connection, parent)
    _check_parent_version(connection, content)
    number = connection.execute(
        update(schema.models)
        .where(schema.models.c.id == model.id)
        .values(latest_version_number=schema.models.c.latest_version_number + 1)
        .returning(schema.models.c.latest_version_number)
    ).scalar_one()
    name = ModelVersionName(parent.model, number)
    version_id = connection.execute(
        insert(schema.versions)
        .values(
            model=model.id,
            number=number,
            uid=str(uuid.uuid4()),
            content=dump_content(content),
            create_time=schema.to_microseconds(now),
        )
        .returning(schema.versions.c.id)
    ).scalar_one()
    connection.execute(
        insert(schema.files),
        [
            {
                "version": version_id,
                "position": position,
                "path": file.path,
                "sha256": file.sha256,
                "size_bytes": file.size_bytes,
                "media_type": file.media_type,
            }
            for position, file in enumerate(content.files)
        ],
    )
    append_event(connection, EventKind.VERSION_CREATED, name, now=now)
    return get_version(connection, name)


def _check_parent_version(connection: Connection, content: VersionContent) -> None:
    claimed = content.lineage.parent_version if content.lineage is not None else ""
    if claimed and find_version_row(connection, ModelVersionName.parse(claimed)) is None:
        field = "model_version.lineage.parent_version"
        description = f"expected a version that exists, got {claimed}"
        raise FailedPrecondition(
            f"{field}: {description}",
            reason="PARENT_VERSION_NOT_FOUND",
            violations=[FieldViolation(field, description)],
            resource=claimed,
        )


def _versions_of(
    connection: Connection, model_id: str, rows: Sequence[Row[Any]]
) -> list[ModelVersion]:
    ids = [row.id for row in rows]
    files: dict[int, list[File]] = defaultdict(list)
    table = schema.files
    for row in connection.execute(
        select(table).where(table.c.version.in_(ids)).order_by(table.c.version, table.c.position)
    ):
        files[row.version].append(File(row.path, row.sha256, row.size_bytes, row.media_type))
    aliases: dict[int, list[str]] = defaultdict(list)
    pointers = schema.aliases
    for row in connection.execute(
        select(pointers.c.version, pointers.c.alias_id)
        .where(pointers.c.version.in_(ids))
        .order_by(pointers.c.alias_id)
    ):
        aliases[row.version].append(row.alias_id)
    return [
        ModelVersion(
            name=ModelVersionName(model_id, row.number),
            uid=row.uid,
            content=load_content(row.content, tuple(files[row.id])),
            create_time=schema.from_microseconds(row.create_time),
            aliases=tuple(aliases[row.id]),
        )
        for row in rows
    ]
