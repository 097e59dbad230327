"""A service's database on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from modelrail_server.config import ConfigError
from modelrail_server.database import Database
from modelrail_server.errors import DataLoss, ResourceExhausted, ServiceError, Unavailable
from modelrail_server.postgresql import postgresql_url
from modelrail_trainer.config import TrainerConfig
from modelrail_trainer.jobs.job import NewJob
from modelrail_trainer.jobs.state import JobState
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.spec import Publication
from tests.postgresql import PASSWORD, PostgresqlServer

NEW = NewJob(b"specification", Publication(model="digits", alias="", description=""))


@contextmanager
def stores(url: URL, count: int, *, max_queued_jobs: int) -> Iterator[list[JobStore]]:
    """Gives the stores of so many trainers on one database."""
    made = [JobStore(open_database(url), max_queued_jobs=max_queued_jobs) for _ in range(count)]
    yield made
    for store in made:
        store.close()


@pytest.fixture
def database(postgresql_database: URL) -> Iterator[Database]:
    database = Database(postgresql_database, migrations="nowhere:migrations")
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE things (thing TEXT)")
    yield database
    database.close()


def _add(database: Database, thing: str) -> None:
    with database.write() as connection:
        connection.execute(text("INSERT INTO things VALUES (:thing)"), {"thing": thing})


def _things(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.exec_driver_sql("SELECT thing FROM things ORDER BY 1").scalars())


def test_services_that_start_at_once_migrate_once(postgresql_database: URL) -> None:
    together = threading.Barrier(4)

    def start(_: int) -> None:
        together.wait(60)
        open_database(postgresql_database).close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(start, range(4)))
    with stores(postgresql_database, 1, max_queued_jobs=1) as (store,):
        assert store.next_queued() is None


def test_two_trainers_do_not_let_more_jobs_wait_than_one(postgresql_database: URL) -> None:
    def create(store: JobStore) -> bool:
        try:
            store.create(NEW)
        except ResourceExhausted:
            return False
        return True

    with (
        stores(postgresql_database, 4, max_queued_jobs=5) as made,
        ThreadPoolExecutor(8) as threads,
    ):
        taken = list(threads.map(create, made * 5))
        assert taken.count(True) == 5
        assert made[0].count_by_state()[JobState.QUEUED] == 5


def test_one_request_id_makes_one_job_whichever_trainer_is_asked(postgresql_database: URL) -> None:
    with (
        stores(postgresql_database, 4, max_queued_jobs=20) as made,
        ThreadPoolExecutor(8) as threads,
    ):
        jobs = list(threads.map(lambda store: store.create(NEW, request_id="one"), made * 4))
    assert len({job.name for job in jobs}) == 1


def test_changes_by_several_trainers_leave_a_history_without_gaps(
    postgresql_database: URL,
) -> None:
    with (
        stores(postgresql_database, 4, max_queued_jobs=20) as made,
        ThreadPoolExecutor(8) as threads,
    ):
        name = made[0].create(NEW).name

        def turn(store: JobStore) -> None:
            store.pause(name)
            store.resume(name)

        list(threads.map(turn, made * 10))
        events, _ = made[0].events_after(name, 0, limit=1000)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len(events) >= 3


def test_a_reader_sees_one_state_throughout(database: Database) -> None:
    with database.read() as connection:
        before = connection.exec_driver_sql("SELECT count(*) FROM things").scalar_one()
        _add(database, "a")
        assert connection.exec_driver_sql("SELECT count(*) FROM things").scalar_one() == before
    assert _things(database) == ["a"]


def test_connections_that_died_meanwhile_are_replaced_unseen(
    database: Database, postgresql: PostgresqlServer
) -> None:
    _add(database, "a")
    postgresql.execute(_END_OTHERS)
    assert _things(database) == ["a"]


_END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test%'"
    " AND backend_type = 'client backend'"
)


def test_a_connection_that_dies_in_a_transaction_is_told_and_changes_nothing(
    database: Database, postgresql: PostgresqlServer
) -> None:
    with pytest.raises(Unavailable) as caught, database.write() as connection:  # noqa: PT012
        connection.exec_driver_sql("INSERT INTO things VALUES ('lost')")
        postgresql.execute(_END_OTHERS)
        connection.exec_driver_sql("INSERT INTO things VALUES ('lost too')")
    assert caught.value.reason == "STORAGE_ERROR"
    assert caught.value.retry_after_seconds
    assert _things(database) == []


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        ("53100", ResourceExhausted, "STORAGE_FULL"),
        ("XX001", DataLoss, "DATABASE_DAMAGED"),
        ("XX002", DataLoss, "DATABASE_DAMAGED"),
        ("40001", Unavailable, "DATABASE_BUSY"),
        ("40P01", Unavailable, "DATABASE_BUSY"),
        ("55P03", Unavailable, "DATABASE_BUSY"),
        ("58030", Unavailable, "STORAGE_ERROR"),
        ("53300", Unavailable, "STORAGE_ERROR"),
    ],
)
def test_what_the_server_says_is_told_as_what_it_means(
    database: Database, code: str, error: type[ServiceError], reason: str
) -> None:
    with pytest.raises(error) as caught, database.write() as connection:
        connection.exec_driver_sql(
            f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"
        )
    assert caught.value.reason == reason


def test_a_server_that_does_not_answer_is_told_without_the_password(tmp_path: Path) -> None:
    url = postgresql_url(f"postgresql://me:{PASSWORD}@/jobs?host={tmp_path}", None)
    with pytest.raises(Unavailable) as caught:
        open_database(url)
    seen: BaseException | None = caught.value
    while seen is not None:
        assert PASSWORD not in f"{seen!r} {seen}"
        seen = seen.__cause__


# The settings


def test_the_password_comes_from_the_file_that_is_named(
    postgresql_database: URL, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    place = f"postgresql://modelrail@/{postgresql_database.database}?host="
    config = TrainerConfig(
        database_url=f"{place}{postgresql_database.query['host']}",
        database_password_file=tmp_path / "password",
    )
    open_database(config.database_place()).close()
    assert TrainerConfig(data_dir=tmp_path).database_place() == tmp_path / "trainer.sqlite3"


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{PASSWORD}@host/jobs",
        f"me:{PASSWORD}@host/jobs",
        f"postgresql://me:{PASSWORD}@host:{PASSWORD}/jobs",
        f"postgresql://me:{PASSWORD}@host",
        f"postgresql+asyncpg://me:{PASSWORD}@host/jobs",
    ],
)
def test_an_url_that_does_not_fit_is_refused_and_never_shown(url: str) -> None:
    config = TrainerConfig(database_url=url)
    assert PASSWORD not in repr(config)
    with pytest.raises(ConfigError) as caught:
        config.database_place()
    assert caught.value.field == "database_url"
    assert PASSWORD not in str(caught.value)


def test_a_password_has_one_place(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("secret")
    config = TrainerConfig(
        database_url="postgresql://me:other@host/jobs", database_password_file=file
    )
    with pytest.raises(ConfigError, match="no password in --database-url"):
        config.database_place()
    file.write_text("\n")
    config = replace(config, database_url="postgresql://me@host/jobs")
    with pytest.raises(ConfigError, match="expected a password"):
        config.database_place()
    with pytest.raises(ConfigError, match="expected --database-url"):
        TrainerConfig(database_password_file=file)
