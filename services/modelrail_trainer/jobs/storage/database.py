"""Opens the trainer's database and brings its schema up to date."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL

from modelrail_server.database import Database, sqlite_url


def open_database(place: Path | URL) -> Database:
    """Returns the database at `place`, migrated when needed.

    Args:
        place: File of the SQLite database, made when it is missing; or the URL of a PostgreSQL
            database, which exists.

    Raises:
        alembic.util.CommandError: The database is of a newer program.
        ServiceError: The file is no database, or cannot be written; the server cannot be reached.
    """
    url = place if isinstance(place, URL) else sqlite_url(place)
    database = Database(url, migrations="modelrail_trainer.jobs.storage:migrations")
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database
