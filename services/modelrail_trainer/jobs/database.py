"""Opens the trainer's SQLite database and brings its schema up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

_BUSY_TIMEOUT_SECONDS = 10.0
WRITE_OPTION = "modelrail_write"


def open_database(path: Path) -> Engine:
    """Returns an engine for the database at `path`, made and migrated when needed.

    Raises:
        sqlalchemy.exc.DBAPIError: The file is no database, or cannot be written.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _BUSY_TIMEOUT_SECONDS},
    )
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    try:
        _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _prepare_connection(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # The driver's own BEGIN comes too late and too weak; `_begin` sends the right one.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        # In WAL mode only FULL keeps the last commits over a power cut.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    # A writer takes the lock at once: a read lock that is upgraded later can meet SQLITE_BUSY
    # that no timeout cures.
    write = connection.get_execution_options().get(WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
    )
    writing = engine.execution_options(**{WRITE_OPTION: True})
    with writing.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
