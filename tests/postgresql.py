"""A real PostgreSQL for tests: its own cluster in a temporary folder, on a Unix socket only."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

PASSWORD = "correct-horse-battery-staple"
_START_SECONDS = 60
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


def unprivileged() -> dict[str, object]:
    """Returns what a process is started with that is not to run as root: root becomes nobody."""
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
        **unprivileged(),  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout.decode()


@contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Runs a server for as long as the context is open; skips where there is no PostgreSQL.

    It is no child of this process: some tests end all children that they find.
    """
    initdb, control = _program("initdb"), _program("pg_ctl")
    # Not pytest's own folder: nobody may enter that, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    cluster = ("--pgdata", str(folder / "data"))
    try:
        (folder / "password").write_text(PASSWORD)
        if user := unprivileged():
            for path in (folder, folder / "password"):
                os.chown(path, user["user"], user["group"])  # type: ignore[arg-type]
        _run(
            [
                *(initdb, *cluster, "--username", "modelrail"),
                *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
                *("--no-sync", "--encoding", "UTF8", "--locale", "C"),
            ],
            folder,
        )
        # By its name a server that outlives killed tests can be told from others.
        own = (f"unix_socket_directories={folder}", f"cluster_name={sys.prefix}")
        options = " ".join(f"-c {shlex.quote(setting)}" for setting in (*_SETTINGS, *own))
        _run(
            [
                *(control, "start", *cluster, "--log", str(folder / "log")),
                *("--wait", "--timeout", str(_START_SECONDS), "--options", options),
            ],
            folder,
        )
        try:
            yield PostgresqlServer(folder)
        finally:
            _run([control, "stop", *cluster, "--wait", "--mode", "immediate"], folder)
    finally:
        shutil.rmtree(folder)
