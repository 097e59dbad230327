"""A real PostgreSQL for tests: its own cluster in a temporary folder, on a Unix socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError

PASSWORD = "correct-horse-battery-staple"
_START_SECONDS = 60.0
_FOLDERS = ("/usr/lib/postgresql/15/bin", "/usr/local/pgsql/bin")
_SETTINGS = (
    *("listen_addresses=", "fsync=off", "full_page_writes=off", "synchronous_commit=off"),
    *("shared_buffers=16MB", "max_connections=60", "autovacuum=off", "timezone=UTC"),
)


class PostgresqlServer:
    """A running server; every test takes a database of its own from it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def url(self, database: str = "postgres") -> URL:
        """Returns the URL of a database, the password included."""
        return URL.create(
            "postgresql+psycopg",
            username="modelrail",
            password=PASSWORD,
            database=database,
            query={"host": str(self._folder)},
        )

    def execute(self, statement: str) -> None:
        """Runs one statement outside of every transaction."""
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()

    @contextmanager
    def database(self) -> Iterator[URL]:
        """Makes an empty database, and removes it in the end."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        yield self.url(name)
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_FOLDERS]))
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not on this machine")
    return found


def _unprivileged() -> dict[str, object]:
    """PostgreSQL does not run as root, so root becomes nobody."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **_unprivileged(),  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout.decode()


@contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Runs a server for as long as the context is open; skips where there is no PostgreSQL."""
    initdb, postgres = _program("initdb"), _program("postgres")
    # Not pytest's own folder: nobody may enter that, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    process = None
    try:
        (folder / "password").write_text(PASSWORD)
        if user := _unprivileged():
            for path in (folder, folder / "password"):
                os.chown(path, user["user"], user["group"])  # type: ignore[arg-type]
        _run(
            [
                *(initdb, "--pgdata", str(folder / "data"), "--username", "modelrail"),
                *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
                *("--no-sync", "--encoding", "UTF8", "--locale", "C"),
            ],
            folder,
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(postgres, "-D", str(folder / "data"), "-k", str(folder)),
                    *(argument for setting in _SETTINGS for argument in ("-c", setting)),
                ],
                cwd=folder,
                stdout=log,
                stderr=log,
                **_unprivileged(),  # type: ignore[call-overload]
            )
        server = PostgresqlServer(folder)
        _await(server, process, folder / "log")
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait()
        shutil.rmtree(folder)


def _await(server: PostgresqlServer, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.execute("SELECT 1")
        except OperationalError:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"PostgreSQL did not start: {log.read_text()}") from None
            time.sleep(0.05)
        else:
            return
