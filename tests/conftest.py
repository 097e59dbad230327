"""What tests of every kind share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from modelrail_trainer.isolation.kernel import landlock_version
from modelrail_trainer.threads import Threads
from tests.azurite import Azurite, azurite_server
from tests.postgresql import PostgresqlServer, postgresql_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server; the test is skipped where none can be started."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
def postgresql_database(postgresql: PostgresqlServer) -> Iterator[URL]:
    """An empty PostgreSQL database."""
    with postgresql.database() as url:
        yield url


@pytest.fixture
def landlock() -> None:
    """The kernel's Landlock; the test is skipped where there is none."""
    try:
        landlock_version()
    except OSError as error:
        pytest.skip(f"the kernel has no Landlock: {error.strerror}")


@pytest.fixture
def threads() -> Iterator[Threads]:
    """The threads of a trainer."""
    threads = Threads()
    yield threads
    threads.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | URL:
    """Where a database can be made, once for each kind that a service keeps."""
    if request.param == "sqlite":
        return tmp_path / "database.sqlite3"
    url: URL = request.getfixturevalue("postgresql_database")
    return url


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    """An Azurite server; the test is skipped where none can be started."""
    with azurite_server() as server:
        yield server
