"""A service's database: one engine, short transactions, and storage errors as service errors.

Only services that keep a database import this module: it needs SQLAlchemy and Alembic, which the
other services are installed without.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from modelrail_server.errors import DataLoss, ResourceExhausted, ServiceError, Unavailable
from modelrail_server.postgresql import postgresql_engine, service_error

_BUSY_TIMEOUT_MILLISECONDS = 10_000
_STORAGE_RETRY_SECONDS = 1.0
# Any number that no other program on the same PostgreSQL database uses for its own locks.
_LOCK_SPACE = 0x6D72
_MIGRATION_LOCK = 0


class Database:
    """Reads and writes in transactions.

    SQLite runs in WAL mode with synchronous=FULL: a committed transaction survives a power cut.
    Readers never wait; writers take the write lock at BEGIN, so that no transaction fails half-way
    through for want of it.

    PostgreSQL reads in REPEATABLE READ and writes in READ COMMITTED. There a writer locks what its
    decision rests on: the row that it changes (`SELECT … FOR UPDATE`), or what many rows say
    together (`lock`). So no transaction has to be repeated because of another.

    Every method that touches the disk raises `ResourceExhausted` when it is full, `Unavailable`
    when it is busy or fails, and `DataLoss` when the database is damaged.

    Args:
        url: Where the database is, a SQLAlchemy URL.
        migrations: Where Alembic finds the migrations, `package:folder`.
        on_commit: Called after every committed write, in the thread that wrote.
    """

    def __init__(
        self, url: str | URL, *, migrations: str, on_commit: Callable[[], None] | None = None
    ) -> None:
        url = make_url(url)
        self.is_shared = url.get_backend_name() == "postgresql"
        """Whether other processes may use the same database at the same time."""
        self._engine: Engine = postgresql_engine(url) if self.is_shared else create_engine(url)
        self._migrations = migrations
        self._on_commit = on_commit
        # SQLite's own lock is not fair: of fifty waiting threads some would starve until
        # the timeout.
        self._writer = threading.Lock()
        if self.is_shared:
            self._write_engine = self._engine.execution_options(isolation_level="READ COMMITTED")
            self._read_engine: Engine = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        else:
            _prepare_sqlite(self._engine)
            self._write_engine = self._engine.execution_options(modelrail_write=True)
            self._read_engine = self._engine

    def migrate(self) -> None:
        """Brings the database to the shape that this program knows, in one transaction.

        Of several services that start at once one does it, and the others wait for it.

        Raises:
            alembic.util.CommandError: The database is of a newer program.
        """
        config = Config()
        config.set_main_option("script_location", self._migrations)
        config.set_main_option("path_separator", "os")
        with self._write_transaction() as connection:
            if self.is_shared:
                # A large table may take its time, and so may whoever was first.
                for limit in ("lock", "statement", "idle_in_transaction_session"):
                    connection.execute(text(f"SET LOCAL {limit}_timeout = '300s'"))
                self.lock(connection, _MIGRATION_LOCK)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Gives a connection that sees one state of the database throughout."""
        with _translated(), self._read_engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Gives a connection inside a write transaction: committed, or rolled back on any error."""
        with self._write_transaction() as connection:
            yield connection
        if self._on_commit is not None:
            self._on_commit()

    def lock(self, connection: Connection, number: int) -> None:
        """Makes other transactions that ask for the same number wait until this one is over.

        Call it before the first read: what is read afterwards cannot be changed by the others. On
        SQLite every write transaction has this already.

        Args:
            connection: Of `write`.
            number: What is locked, from 1, as the service numbers it.
        """
        if self.is_shared:
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK_SPACE, number)))

    @contextmanager
    def _write_transaction(self) -> Iterator[Connection]:
        turn = nullcontext() if self.is_shared else self._writer
        with _translated(), turn, self._write_engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


def sqlite_url(path: Path) -> URL:
    """Returns the URL of the SQLite database in a file, which is made when it is missing."""
    return URL.create("sqlite", database=str(path))


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
        # The driver would otherwise begin transactions at moments of its own choice, and
        # never for DDL.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {_BUSY_TIMEOUT_MILLISECONDS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("modelrail_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        known: ServiceError | None = None
        orig: Any = error.orig
        if not hasattr(orig, "sqlstate"):
            known = _sqlite_error(orig)
        elif isinstance(error, OperationalError | InternalError) or error.connection_invalidated:
            known = service_error(orig.sqlstate, disconnected=error.connection_invalidated)
        if known is None:
            raise
        raise known from error
    except PoolTimeout as error:
        raise Unavailable(
            "the database is busy",
            reason="DATABASE_BUSY",
            retry_after_seconds=_STORAGE_RETRY_SECONDS,
        ) from error


def _sqlite_error(error: Any) -> ServiceError | None:
    # Extended result codes hold the primary code in their low byte
    # (https://sqlite.org/rescode.html).
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ResourceExhausted(
            "the storage is full; what is stored can be read", reason="STORAGE_FULL"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(
            "the database is busy",
            reason="DATABASE_BUSY",
            retry_after_seconds=_STORAGE_RETRY_SECONDS,
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return Unavailable(
            "the storage failed; nothing was changed",
            reason="STORAGE_ERROR",
            retry_after_seconds=_STORAGE_RETRY_SECONDS,
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DataLoss("the database is damaged", reason="DATABASE_DAMAGED")
    return None
