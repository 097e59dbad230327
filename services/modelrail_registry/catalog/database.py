"""The registry's database: its migrations, and the uid by which resume tokens know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL, select

from modelrail_registry.catalog import schema
from modelrail_server import database


class Database(database.Database):
    """What the registry keeps besides blobs.

    Args:
        url: Where the database is, a SQLAlchemy URL.
        on_commit: Called after every committed write, in the thread that wrote.

    Attributes:
        uid: Made with the database and never changed; empty until `migrate`.
    """

    def __init__(self, url: str | URL, *, on_commit: Callable[[], None] | None = None) -> None:
        super().__init__(
            url, migrations="modelrail_registry.catalog:migrations", on_commit=on_commit
        )
        self.uid = ""

    @classmethod
    def at(cls, path: Path, *, on_commit: Callable[[], None] | None = None) -> Database:
        """Opens the SQLite database in a file, made when it is missing."""
        return cls(database.sqlite_url(path), on_commit=on_commit)

    def migrate(self) -> None:
        """Brings the database to the shape that this program knows, in one transaction.

        Raises:
            alembic.util.CommandError: The database is of a newer program.
        """
        super().migrate()
        with self.read() as connection:
            self.uid = connection.execute(select(schema.registry.c.uid)).scalar_one()
