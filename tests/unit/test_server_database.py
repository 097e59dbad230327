"""The database of a service: what it answers when the storage cannot do what was asked."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelrail_server.database import Database, sqlite_url
from modelrail_server.errors import DataLoss, ResourceExhausted, Unavailable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "things.sqlite3"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    database = _opened(file)
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE things (thing TEXT)")
    yield database
    database.close()


def _opened(file: Path) -> Database:
    return Database(sqlite_url(file), migrations="nowhere:migrations")


def _add(database: Database, thing: str) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO things VALUES (?)", (thing,))


def _things(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.exec_driver_sql("SELECT thing FROM things").scalars())


def test_a_transaction_that_fails_leaves_nothing_and_wakes_nobody(file: Path) -> None:
    commits: list[str] = []
    database = Database(
        sqlite_url(file), migrations="nowhere:migrations", on_commit=lambda: commits.append("one")
    )
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE things (thing TEXT)")
    with pytest.raises(KeyError), database.write() as connection:  # noqa: PT012
        connection.exec_driver_sql("INSERT INTO things VALUES ('a')")
        raise KeyError
    assert _things(database) == []
    assert commits == ["one"]
    database.close()


def test_a_commit_survives_a_power_cut(database: Database) -> None:
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO things VALUES ('a')")
        assert _things(database) == []
    assert _things(database) == ["a"]


def test_writers_take_turns(database: Database) -> None:
    threads = [threading.Thread(target=_add, args=(database, str(i))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(_things(database)) == 20


def test_a_full_disk_is_told_and_what_is_stored_can_be_read(database: Database) -> None:
    _add(database, "small")
    # The limit belongs to a connection; the pool hands the one that was given back out again.
    # It cannot be less than what is there.
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(ResourceExhausted, match="the storage is full") as caught:
        _add(database, "big" * 100_000)
    assert caught.value.reason == "STORAGE_FULL"
    assert _things(database) == ["small"]


def test_a_lock_that_another_program_holds_is_told_as_busy(database: Database, file: Path) -> None:
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="busy") as caught:
        _add(database, "a")
    assert caught.value.reason == "DATABASE_BUSY"
    assert caught.value.retry_after_seconds
    other.close()
    _add(database, "a")
    assert _things(database) == ["a"]


def test_a_file_that_cannot_be_opened_is_a_failure_of_the_storage(tmp_path: Path) -> None:
    database = _opened(tmp_path / "no" / "folder")
    with pytest.raises(Unavailable) as caught:
        _things(database)
    assert caught.value.reason == "STORAGE_ERROR"
    database.close()


@pytest.mark.parametrize("step", [_things, Database.migrate], ids=["read", "migrate"])
def test_a_file_that_is_no_database_is_told_as_damage(
    file: Path, step: Callable[[Database], object]
) -> None:
    file.write_bytes(b"no database at all " * 1000)
    database = _opened(file)
    with pytest.raises(DataLoss) as caught:
        step(database)
    assert caught.value.reason == "DATABASE_DAMAGED"
    database.close()
