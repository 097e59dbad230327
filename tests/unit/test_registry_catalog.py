"""The catalog on SQLite: numbers without gaps, one result a request, aliases by compare-and-set."""

# ruff: noqa: PT017 (an answer that may be an error; a stream is read inside of raises)

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_registry.catalog.aliases import AliasMove
from modelrail_registry.catalog.catalog import Catalog, Publication
from modelrail_registry.catalog.database import Database
from modelrail_registry.catalog.events import ResumeToken
from modelrail_registry.catalog.idempotency import RequestKey
from modelrail_registry.catalog.pagination import PageRequest
from modelrail_registry.protocol import replies
from modelrail_registry.resources import EventKind, File, Lineage, VersionContent
from modelrail_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)

DIGITS = ModelName("digits")
LIVE = ModelAliasName("digits", "live")
CONTENT = VersionContent(files=(File("model.onnx", "0" * 64, 3),))
THREADS = 50


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.at(tmp_path / "registry.sqlite3")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database)


def wish(key: RequestKey | None = None) -> Publication:
    return Publication(parent=DIGITS, content=CONTENT, create_model=True, key=key)


def together(catalog: Catalog, wishes: list[Publication]) -> list[int]:
    barrier = threading.Barrier(len(wishes))

    def publish(publication: Publication) -> int:
        barrier.wait()
        return catalog.publish(publication).name.number

    with ThreadPoolExecutor(len(wishes)) as threads:
        return list(threads.map(publish, wishes))


def test_fifty_publishers_at_once_get_fifty_numbers_without_gap(catalog: Catalog) -> None:
    assert sorted(together(catalog, [wish()] * THREADS)) == list(range(1, THREADS + 1))
    assert catalog.get_model(DIGITS).latest_version_number == THREADS
    page = PageRequest.parse(page_size=100, page_token="", collection="c")
    listed = catalog.list_versions(DIGITS, page).items
    assert [v.name.number for v in listed] == list(range(THREADS, 0, -1))


def test_fifty_calls_with_one_request_id_make_one_version(catalog: Catalog) -> None:
    key = RequestKey("a" * 36, "d" * 64)
    assert set(together(catalog, [wish(key)] * THREADS)) == {1}
    with pytest.raises(AlreadyExists) as caught:
        catalog.publish(wish(RequestKey("a" * 36, "e" * 64)))
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert catalog.get_model(DIGITS).latest_version_number == 1


def test_of_movers_with_the_same_etag_exactly_one_wins(catalog: Catalog) -> None:
    for _ in range(9):
        catalog.publish(wish())
    first = ModelVersionName("digits", 1)
    alias = catalog.move_alias(AliasMove(name=LIVE, version=first, allow_missing=True))
    barrier = threading.Barrier(8)

    def move(number: int) -> int:
        barrier.wait()
        version = ModelVersionName("digits", number)
        try:
            catalog.move_alias(AliasMove(name=LIVE, version=version, etag=alias.etag))
        except Aborted as error:
            assert error.metadata["expected_etag"] == alias.etag
            assert error.metadata["current_etag"] != alias.etag
            return 0
        return number

    with ThreadPoolExecutor(8) as threads:
        won = [number for number in threads.map(move, range(2, 10)) if number]
    assert [catalog.get_alias(LIVE).version.number] == won


def test_a_repeated_move_returns_the_first_result_even_after_others(catalog: Catalog) -> None:
    catalog.publish(wish())
    catalog.publish(wish())
    key = RequestKey("a" * 36, "d" * 64)
    move = AliasMove(name=LIVE, version=ModelVersionName("digits", 1), allow_missing=True)
    first = catalog.move_alias(move, key=key)
    catalog.move_alias(AliasMove(name=LIVE, version=ModelVersionName("digits", 2)))
    assert catalog.move_alias(move, key=key) == first
    assert catalog.get_alias(LIVE).version.number == 2


def test_an_alias_never_points_at_nothing(catalog: Catalog) -> None:
    catalog.publish(wish())
    missing = AliasMove(name=LIVE, version=ModelVersionName("digits", 5), allow_missing=True)
    with pytest.raises(FailedPrecondition):
        catalog.move_alias(missing)
    with pytest.raises(NotFound):
        catalog.get_alias(LIVE)


def test_a_refused_version_leaves_neither_model_nor_number_nor_event(catalog: Catalog) -> None:
    lineage = Lineage(parent_version="models/none/versions/1")
    content = VersionContent(files=CONTENT.files, lineage=lineage)
    with pytest.raises(FailedPrecondition):
        catalog.publish(Publication(parent=DIGITS, content=content, create_model=True))
    with pytest.raises(NotFound):
        catalog.get_model(DIGITS)
    assert catalog.present().sequence == 0


def test_the_history_tells_every_change_in_order(catalog: Catalog, database: Database) -> None:
    start = catalog.present()
    catalog.publish(wish())
    version = ModelVersionName("digits", 1)
    alias = catalog.move_alias(AliasMove(name=LIVE, version=version, allow_missing=True))
    assert catalog.move_alias(AliasMove(name=LIVE, version=version)) == alias  # no move, no event
    catalog.delete_alias(LIVE, etag=alias.etag)
    events = catalog.events_after(start)
    assert [(e.sequence, e.kind) for e in events] == [
        (1, EventKind.MODEL_CREATED),
        (2, EventKind.VERSION_CREATED),
        (3, EventKind.ALIAS_MOVED),
        (4, EventKind.ALIAS_DELETED),
    ]
    assert events[2].model_version == str(version)
    with pytest.raises(OutOfRange):
        catalog.events_after(ResumeToken(database.uid, 5))


@pytest.mark.parametrize("text", ["garbage", "é", "a" * 500, "OjE", "====", "\0"])
def test_a_text_that_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        ResumeToken.parse(text)
    with pytest.raises(InvalidArgument):
        PageRequest.parse(page_size=0, page_token=text, collection="models")


def test_a_token_survives_its_text() -> None:
    token = ResumeToken("u" * 36, 7)
    assert ResumeToken.parse(str(token)) == token


def test_a_full_disk_is_told_and_changes_nothing(catalog: Catalog, database: Database) -> None:
    catalog.publish(wish())
    with database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    # The limit belongs to a connection; the pool hands the one that was given back out again.
    with database.read() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    big = VersionContent(files=CONTENT.files, description="x" * 100_000)
    with pytest.raises(ResourceExhausted) as caught:
        catalog.publish(Publication(parent=DIGITS, content=big))
    assert caught.value.reason == "STORAGE_FULL"
    assert catalog.get_model(DIGITS).latest_version_number == 1


def test_a_page_token_whose_key_is_no_text_is_refused() -> None:
    """JSON can write half of a surrogate pair, which no database can be asked for."""
    token = base64.urlsafe_b64encode(b'["models", "\\ud800"]').decode()
    with pytest.raises(InvalidArgument, match="next_page_token"):
        PageRequest.parse(page_size=0, page_token=token, collection="models")


@pytest.mark.parametrize(
    "content",
    [
        VersionContent(files=CONTENT.files, description="é" * (300 << 10)),
        VersionContent(files=tuple(File(f"{number:0>255}", "0" * 64, 1) for number in range(256))),
    ],
    ids=["long descriptions", "many files"],
)
def test_a_page_of_versions_ends_before_it_is_too_large_for_a_reply(
    catalog: Catalog, content: VersionContent
) -> None:
    for _ in range(60):
        catalog.publish(Publication(parent=DIGITS, content=content, create_model=True))
    numbers: list[int] = []
    token = "first"
    while token:
        wanted = PageRequest.parse(
            page_size=1000,
            page_token="" if token == "first" else token,
            collection="models/digits/versions",
        )
        page = catalog.list_versions(DIGITS, wanted)
        assert sum(replies.version_to_pb(item).ByteSize() for item in page.items) < 4 << 20
        numbers += [item.name.number for item in page.items]
        token = page.next_page_token
    assert numbers == list(range(60, 0, -1))


def test_a_version_that_is_larger_than_a_page_has_a_page_of_its_own(catalog: Catalog) -> None:
    giant = VersionContent(files=CONTENT.files, description="x" * (5 << 20))
    for content in (CONTENT, giant, CONTENT):
        catalog.publish(Publication(parent=DIGITS, content=content, create_model=True))
    wanted = PageRequest.parse(page_size=0, page_token="", collection="models/digits/versions")
    sizes = []
    for _ in range(3):
        page = catalog.list_versions(DIGITS, wanted)
        sizes.append(len(page.items))
        wanted = PageRequest.parse(
            page_size=0, page_token=page.next_page_token, collection="models/digits/versions"
        )
    assert sizes == [1, 1, 1]
    assert not page.next_page_token


def test_a_page_of_models_ends_before_it_is_too_large_for_a_reply(catalog: Catalog) -> None:
    names = [ModelName(f"model-{number:02}") for number in range(40)]
    for name in names:
        catalog.create_model(name, description="x" * (256 << 10))
    listed: list[ModelName] = []
    wanted = PageRequest.parse(page_size=1000, page_token="", collection="models")
    while True:
        page = catalog.list_models(wanted)
        assert sum(replies.model_to_pb(item).ByteSize() for item in page.items) < 4 << 20
        listed += [item.name for item in page.items]
        if not page.next_page_token:
            break
        wanted = PageRequest.parse(
            page_size=1000, page_token=page.next_page_token, collection="models"
        )
    assert listed == names
