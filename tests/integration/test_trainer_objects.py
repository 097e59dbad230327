"""Jobs that learn from objects, through the service and with real workers."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from structlog.testing import capture_logs

from modelrail.client.errors import FailedPrecondition, InvalidArgument
from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.config import ConfigError
from modelrail_trainer.__main__ import WORKER_COMMAND
from modelrail_trainer.config import TrainerConfig
from modelrail_trainer.execution import supervisor
from modelrail_trainer.handover.artifact import load_result
from modelrail_trainer.objects import store as stores
from tests.integration.house import (
    House,
    ScriptedRegistry,
    TrainerUnderTest,
    serving_registry,
    states,
)
from tests.object_store import SCHEMES, Held, ObjectStore, on_every_store, store_of

Job = pb.TrainingJob
URI = "s3://data/flowers/rows.csv"
SECONDS = 60.0


def rows() -> str:
    lines = [f"{place / 100},{'big' if place > 50 else 'small'}" for place in range(100)]
    return "\n".join(["size,kind", *lines, ""])


def job(*paths: str, test_paths: Sequence[str] = ()) -> pb.TrainingJobSpec:
    return pb.TrainingJobSpec(
        dataset=pb.Dataset(table=pb.TableDataset(paths=paths, target="kind")),
        split=pb.Split(test_paths=test_paths),
        model=pb.ModelSpec(linear=pb.LinearModel()),
        loss=pb.Loss(cross_entropy=pb.CrossEntropy()),
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=0.1)),
        epochs=2,
        publication=pb.Publication(model="kinds"),
    )


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(stores, "_FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(supervisor, "_FIRST_RESTART_SECONDS", 0.01)
    with store_of(request, monkeypatch) as store:
        store.objects["data/flowers/rows.csv"] = rows().encode()
        yield store


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "rows.csv").write_text(rows())
    registry = ScriptedRegistry()  # type: ignore[abstract]  # answers what is asked here
    return House(tmp_path, registry, command=WORKER_COMMAND)


SETTINGS: dict[str, Any] = {
    "object_root": tuple(f"{scheme}://data/flowers" for scheme in SCHEMES),
    "max_object_bytes": 1 << 20,
}


@pytest.fixture
async def trainer(house: House, store: ObjectStore) -> AsyncIterator[TrainerUnderTest]:
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(data_root=(str(house.tmp_path / "local"),), **SETTINGS) as trainer,
    ):
        yield trainer


@pytest.fixture
def held(store: ObjectStore) -> Iterator[Held]:
    held = Held(store)
    yield held
    held.let_go()


# What works


async def test_an_object_is_learned_like_the_file_that_it_is(trainer: TrainerUnderTest) -> None:
    jobs = [await trainer.client.create_job(job(path)) for path in (URI, "rows.csv")]
    ended = [await trainer.ended(one.name) for one in jobs]
    assert [one.state for one in ended] == [Job.STATE_SUCCEEDED] * 2, ended
    of_object, of_file = (load_result(trainer.directory(one.name)).lineage for one in jobs)
    assert of_object.dataset_sha256 == of_file.dataset_sha256
    assert not (trainer.directory(jobs[0].name) / "objects").exists()
    events = await trainer.events(jobs[0].name)
    assert f"objects copied: 1, of {len(rows())} bytes" in [e.log_line.text for e in events]
    assert ended[0].spec.dataset.table.paths == [URI]


async def test_a_part_of_a_split_may_be_an_object_beside_files(
    trainer: TrainerUnderTest, store: ObjectStore
) -> None:
    store.objects["data/flowers/test.csv"] = b"size,kind\n0.1,small\n0.9,big\n"
    created = await trainer.client.create_job(
        job("rows.csv", test_paths=["s3://data/flowers/test.csv"])
    )
    ended = await trainer.ended(created.name)
    assert ended.state == Job.STATE_SUCCEEDED, ended.error
    assert {part.split: part.rows for part in ended.data_summary.parts}["test"] == 2


def contents(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # what is done with may go meanwhile
            yield path.read_bytes()


@on_every_store
async def test_files_of_parquet_are_read_out_of_a_store_and_nothing_that_opens_it_is_kept(
    trainer: TrainerUnderTest, store: ObjectStore
) -> None:
    columns = {"size": [place / 100 for place in range(100)], "kind": ["small", "big"] * 50}
    for part in ("one", "two"):
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table(columns), sink)
        store.objects[f"data/flowers/{part}.parquet"] = sink.getvalue().to_pybytes()
    uris = [store.uri(f"flowers/{part}.parquet") for part in ("one", "two", "none")]
    with capture_logs() as logs:
        created = await trainer.client.create_job(job(*uris[:2]))
        ended = await trainer.ended(created.name)
        assert ended.state == Job.STATE_SUCCEEDED, ended.error
        assert sum(part.rows for part in ended.data_summary.parts) == 200
        failed = await trainer.ended((await trainer.client.create_job(job(*uris))).name)
        assert failed.error.message == (
            f"dataset.table.paths[2]: {uris[2]}: there is no such object"
        )
    assert "object not read" in {log["event"] for log in logs}
    kept = list(contents(trainer.data_dir))
    told = [repr(logs), repr(ended), repr(failed)]
    for secret in store.secrets:
        assert not any(secret in one for one in told)
        assert not any(secret.encode() in one for one in kept)


async def test_a_dry_run_and_a_look_read_objects_too(trainer: TrainerUnderTest) -> None:
    client = trainer.client.with_timeout(SECONDS)
    found = await client.inspect_dataset(job(URI).dataset)
    assert {column.name for column in found.columns} == {"size", "kind"}
    await client.create_job(job(URI), dry_run=True, validate_only=True)


# What may not be read, or is not there


@pytest.mark.parametrize(
    "uri", ["s3://data/secret.csv", "s3://other/flowers/a.csv", "file:///etc/passwd.csv"]
)
async def test_what_lies_outside_is_refused_at_once(
    trainer: TrainerUnderTest, store: ObjectStore, uri: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await trainer.client.create_job(job(uri))
    (violation,) = caught.value.violations
    assert violation.field == "training_job.spec.dataset.table.paths[0]"
    assert "expected an object below an --object-root of the trainer" in violation.description
    assert store.requests == []


async def test_an_object_that_is_not_there_fails_the_job(trainer: TrainerUnderTest) -> None:
    created = await trainer.client.create_job(job(URI, "s3://data/flowers/gone.csv"))
    ended = await trainer.ended(created.name)
    assert (ended.state, ended.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_DATA)
    assert ended.error.message == (
        "dataset.table.paths[1]: s3://data/flowers/gone.csv: there is no such object"
    )
    with pytest.raises(FailedPrecondition, match=r"gone\.csv: there is no such object"):
        await trainer.client.inspect_dataset(job("s3://data/flowers/gone.csv").dataset)


async def test_a_store_that_is_away_is_tried_again_as_often_as_the_job_allows(
    trainer: TrainerUnderTest, store: ObjectStore
) -> None:
    store.trouble = lambda request, number: 503 if number <= 6 else 0
    created = await trainer.client.create_job(job(URI), policy=RunPolicy(max_retries=1))
    ended = await trainer.ended(created.name)
    assert (ended.state, ended.attempt) == (Job.STATE_SUCCEEDED, 2), ended
    store.trouble = lambda request, number: 503
    created = await trainer.client.create_job(job(URI))
    ended = await trainer.ended(created.name)
    assert ended.error.reason == pb.JobError.REASON_DATA_UNAVAILABLE
    assert "the-secret-key" not in ended.error.message
    assert "127.0.0.1" not in ended.error.message


# Stopping meanwhile


async def test_a_job_is_cancelled_while_its_objects_are_copied(
    trainer: TrainerUnderTest, held: Held
) -> None:
    created = await trainer.client.create_job(job(URI))
    await held.asked()
    await trainer.client.cancel_job(created.name)
    ended = await trainer.ended(created.name)
    assert ended.state == Job.STATE_CANCELLED
    assert states(await trainer.events(created.name)) == [
        *("QUEUED", "PREPARING", "CANCELLING", "CANCELLED")
    ]


async def test_a_job_is_paused_while_its_objects_are_copied_and_copies_them_anew(
    trainer: TrainerUnderTest, held: Held
) -> None:
    created = await trainer.client.create_job(job(URI))
    await held.asked()
    await trainer.client.pause_job(created.name)
    await trainer.until_state(created.name, Job.STATE_PAUSED)
    held.let_go()
    await trainer.client.resume_job(created.name)
    assert (await trainer.ended(created.name)).state == Job.STATE_SUCCEEDED


async def test_a_trainer_that_stops_while_it_copies_goes_on_at_its_next_start(
    house: House, held: Held
) -> None:
    async with serving_registry(house.registry, house.registry_address):
        async with house.trainer(**SETTINGS) as trainer:
            created = await trainer.client.create_job(job(URI))
            await held.asked()
        held.let_go()
        async with house.trainer(**SETTINGS) as trainer:
            ended = await trainer.ended(created.name)
    assert (ended.state, ended.attempt) == (Job.STATE_SUCCEEDED, 2)


# Settings


def test_objects_need_a_library_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainerConfig(object_root=("s3://data",))
    config.object_roots().check("s3://data/x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'modelrail\[objects\]'"):
        config.object_roots()
    TrainerConfig().object_roots()


def test_a_root_that_is_none_is_a_mistake_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="expected a bucket or a folder in one"):
        TrainerConfig(object_root=("data",)).object_roots()
