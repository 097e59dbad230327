"""Models, versions, aliases and their history: each call is one transaction.

Every method blocks on the database and is called from a thread of the service's executor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection

from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_registry.catalog import aliases, events, models, schema, versions
from modelrail_registry.catalog.aliases import AliasMove
from modelrail_registry.catalog.database import Database
from modelrail_registry.catalog.idempotency import RequestKey, find_result, store_result
from modelrail_registry.catalog.models import ModelChange
from modelrail_registry.catalog.pagination import Page, PageRequest
from modelrail_registry.resources import Event, Model, ModelAlias, ModelVersion, VersionContent


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A wish to publish a version."""

    parent: ModelName
    content: VersionContent
    create_model: bool = False
    key: RequestKey | None = None


class Catalog:
    """What the registry knows, apart from the bytes.

    Args:
        database: Where it is kept.
        clock: The time of changes, in UTC.
    """

    def __init__(
        self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = database
        self._clock = clock

    def get_model(self, name: ModelName) -> Model:
        """Returns a model, or raises NotFound."""
        with self._database.read() as connection:
            return models.model_of(models.require_model_row(connection, name))

    def list_models(self, page: PageRequest) -> Page[Model]:
        """Returns models in the order of their names."""
        with self._database.read() as connection:
            return models.list_models(connection, page)

    def create_model(
        self,
        name: ModelName,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        key: RequestKey | None = None,
    ) -> Model:
        """Makes a model without versions; raises AlreadyExists when the name is taken."""
        with self._database.write() as connection:
            result = find_result(connection, key)
            if result is not None:
                return _load_model(result)
            now = self._clock()
            model = models.create_model(
                connection, name, description=description, labels=labels, now=now
            )
            store_result(connection, key, _dump_model(model), now)
            return model

    def update_model(self, change: ModelChange) -> Model:
        """Changes a model; raises NotFound, or Aborted on a stale etag."""
        with self._database.write() as connection:
            return models.update_model(connection, change, now=self._clock())

    def get_version(self, name: ModelVersionName | ModelAliasName) -> ModelVersion:
        """Returns a version by number or alias, or raises NotFound."""
        with self._database.read() as connection:
            return versions.get_version(connection, name)

    def list_versions(self, parent: ModelName, page: PageRequest) -> Page[ModelVersion]:
        """Returns the versions of a model, the newest first, or raises NotFound."""
        with self._database.read() as connection:
            return versions.list_versions(connection, parent, page)

    def find_publication(self, publication: Publication) -> ModelVersion | None:
        """Returns the version that the same request made before, None when the request is new.

        Raises:
            AlreadyExists: The request id was used for another request.
            NotFound: The model does not exist and is not to be made.
        """
        with self._database.read() as connection:
            found = _published(connection, publication.key)
            if found is None and not publication.create_model:
                models.require_model_row(connection, publication.parent)
            return found

    def publish(self, publication: Publication) -> ModelVersion:
        """Adds a version whose bytes are known to be stored: all of it in one transaction, or none.

        Raises:
            AlreadyExists: The request id was used for another request.
            NotFound: The model does not exist and is not to be made.
            FailedPrecondition: The parent version does not exist.
        """
        with self._database.write() as connection:
            found = _published(connection, publication.key)
            if found is not None:
                return found
            now = self._clock()
            if (
                publication.create_model
                and models.find_model_row(connection, publication.parent) is None
            ):
                models.create_model(connection, publication.parent, now=now)
            version = versions.insert_version(
                connection, publication.parent, publication.content, now=now
            )
            store_result(connection, publication.key, str(version.name), now)
            return version

    def get_alias(self, name: ModelAliasName) -> ModelAlias:
        """Returns an alias, or raises NotFound."""
        with self._database.read() as connection:
            return aliases.get_alias(connection, name)

    def list_aliases(self, parent: ModelName, page: PageRequest) -> Page[ModelAlias]:
        """Returns the aliases of a model in the order of their names, or raises NotFound."""
        with self._database.read() as connection:
            return aliases.list_aliases(connection, parent, page)

    def move_alias(self, move: AliasMove, *, key: RequestKey | None = None) -> ModelAlias:
        """Points an alias at a version; raises NotFound, FailedPrecondition or Aborted."""
        with self._database.write() as connection:
            result = find_result(connection, key)
            if result is not None:
                return _load_alias(result)
            now = self._clock()
            alias = aliases.move_alias(connection, move, now=now)
            store_result(connection, key, _dump_alias(alias), now)
            return alias

    def delete_alias(self, name: ModelAliasName, *, etag: str = "") -> None:
        """Removes an alias; raises NotFound, or Aborted on a stale etag."""
        with self._database.write() as connection:
            aliases.delete_alias(connection, name, etag=etag, now=self._clock())

    def present(self) -> events.ResumeToken:
        """Returns the end of the history."""
        with self._database.read() as connection:
            return events.ResumeToken(self._database.uid, events.last_sequence(connection))

    def events_after(
        self, token: events.ResumeToken, *, models: Collection[str] = (), limit: int = 256
    ) -> tuple[Event, ...]:
        """Returns up to `limit` events behind a place; raises OutOfRange for an unknown place."""
        with self._database.read() as connection:
            after = token.check(self._database.uid, events.last_sequence(connection))
            return events.read_events(connection, after, models=models, limit=limit)


def _published(connection: Connection, key: RequestKey | None) -> ModelVersion | None:
    result = find_result(connection, key)
    if result is None:
        return None
    return versions.get_version(connection, ModelVersionName.parse(result))


def _dump_model(model: Model) -> str:
    return json.dumps(
        {
            "name": str(model.name),
            "uid": model.uid,
            "description": model.description,
            "labels": dict(model.labels),
            "latest_version_number": model.latest_version_number,
            "create_time": schema.to_microseconds(model.create_time),
            "update_time": schema.to_microseconds(model.update_time),
            "etag": model.etag,
        }
    )


def _load_model(text: str) -> Model:
    document = json.loads(text)
    return Model(
        name=ModelName.parse(document["name"]),
        uid=document["uid"],
        description=document["description"],
        labels=document["labels"],
        latest_version_number=document["latest_version_number"],
        create_time=schema.from_microseconds(document["create_time"]),
        update_time=schema.from_microseconds(document["update_time"]),
        etag=document["etag"],
    )


def _dump_alias(alias: ModelAlias) -> str:
    return json.dumps(
        {
            "name": str(alias.name),
            "version": str(alias.version),
            "create_time": schema.to_microseconds(alias.create_time),
            "update_time": schema.to_microseconds(alias.update_time),
            "etag": alias.etag,
        }
    )


def _load_alias(text: str) -> ModelAlias:
    document = json.loads(text)
    return ModelAlias(
        name=ModelAliasName.parse(document["name"]),
        version=ModelVersionName.parse(document["version"]),
        create_time=schema.from_microseconds(document["create_time"]),
        update_time=schema.from_microseconds(document["update_time"]),
        etag=document["etag"],
    )
