"""Opens the trainer's database and brings its schema up to date."""

from __future__ import annotations

from pathlib import Path

from modelrail_server.database import Database, sqlite_url


def open_database(path: Path) -> Database:
    """Returns the database at `path`, made and migrated when needed.

    Raises:
        alembic.util.CommandError: The database is of a newer program.
        ServiceError: The file is no database, or cannot be written.
    """
    database = Database(sqlite_url(path), migrations="modelrail_trainer.jobs:migrations")
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database
