"""PostgreSQL as a service's database: its URL, its connections, and what its errors mean.

The driver, psycopg 3, is an extra of its own; without it nothing here can be connected to.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from modelrail_server.config import ConfigError
from modelrail_server.errors import DataLoss, ResourceExhausted, ServiceError, Unavailable

_STORAGE_RETRY_SECONDS = 1.0
# A connection that hangs must not hang a service: these end it. What a service does in one
# transaction takes milliseconds; one that was frozen in the middle must not keep its locks.
_CONNECT_SECONDS = 10
_SESSION = "-c lock_timeout=10s -c statement_timeout=30s -c idle_in_transaction_session_timeout=10s"
_KEEPALIVE: dict[str, int] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


def postgresql_url(text: str, password_file: Path | None) -> URL:
    """Returns the URL of a PostgreSQL database, checked, with the password from the file.

    No message of this function shows the text: it may hold a password.

    Args:
        text: `postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE`, with libpq's parameters after a
            `?`; `?host=/folder` for a Unix socket.
        password_file: File with the password; None where the URL or libpq has it.

    Raises:
        ConfigError: Names `database_url` or `database_password_file`.
    """
    try:
        url = make_url(text)
        scheme = url.drivername
    except (SQLAlchemyError, ValueError):
        scheme = ""
    if scheme not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ConfigError(
            "database_url",
            "expected postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE, got something else"
            " (not shown here, because it may hold a password)",
        ) from None
    if not url.database:
        raise ConfigError("database_url", "expected the name of a database at its end, got none")
    if find_spec("psycopg") is None:
        raise ConfigError(
            "database_url",
            "PostgreSQL needs the driver psycopg: pip install 'modelrail[postgresql]'",
        )
    if password_file is not None:
        if url.password is not None:
            raise ConfigError(
                "database_password_file", "expected no password in --database-url beside it"
            )
        url = url.set(password=_password(password_file))
    return url.set(drivername="postgresql+psycopg")


def _password(file: Path) -> str:
    try:
        password = file.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigError("database_password_file", f"cannot read {file}: {why}") from None
    if not password:
        raise ConfigError("database_password_file", f"expected a password in {file}, got none")
    return password


def postgresql_engine(url: URL) -> Engine:
    """Returns an engine whose connections are tried before use and never hang for long."""
    usual: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "application_name": f"modelrail-{os.getpid()}",
        "options": _SESSION,
        **_KEEPALIVE,
    }
    arguments = {name: value for name, value in usual.items() if name not in url.query}
    return create_engine(
        url, connect_args=arguments, pool_pre_ping=True, pool_timeout=_CONNECT_SECONDS
    )


def service_error(state: str | None, *, disconnected: bool) -> ServiceError | None:
    """Returns what an error of PostgreSQL means for the caller; None for a defect of the program.

    Args:
        state: Its SQLSTATE (https://www.postgresql.org/docs/15/errcodes-appendix.html); None where
            the server did not answer.
        disconnected: Whether the connection is lost.
    """
    code = state or ""
    if code == "53100":
        return ResourceExhausted(
            "the storage is full; what is stored can be read", reason="STORAGE_FULL"
        )
    if code in {"XX001", "XX002"}:
        return DataLoss("the database is damaged", reason="DATABASE_DAMAGED")
    # Serialization failures, deadlocks, locks that did not come in time, statements that took too
    # long: the transaction was undone, and the next try may find the way free.
    if code in {"40001", "40P01", "55P03", "57014"}:
        return Unavailable(
            "the database is busy",
            reason="DATABASE_BUSY",
            retry_after_seconds=_STORAGE_RETRY_SECONDS,
        )
    # I/O errors, read-only standbys, too many connections, a server that starts or stops, a
    # password that is being changed, frozen transactions that were ended, and no answer at all.
    failing = code[:2] in {"08", "28", "53", "57", "58"} or code in {"25006", "25P03"}
    if failing or disconnected or state is None:
        return Unavailable(
            "the database cannot be used now",
            reason="STORAGE_ERROR",
            retry_after_seconds=_STORAGE_RETRY_SECONDS,
        )
    return None
