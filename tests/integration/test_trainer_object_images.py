"""Jobs that learn from folders of images in an object store, with real workers."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelrail.client.errors import FailedPrecondition, InvalidArgument
from modelrail.client.trainer import RunPolicy
from modelrail.names import TrainingJobName
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.__main__ import WORKER_COMMAND
from modelrail_trainer.execution import preparation, supervisor
from modelrail_trainer.execution.limits.stopwatch import Stopwatch
from modelrail_trainer.handover.artifact import load_result
from modelrail_trainer.jobs import job as domain
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.objects import store as stores
from tests.integration.house import (
    House,
    ScriptedRegistry,
    TrainerUnderTest,
    serving_registry,
    states,
)
from tests.object_store import Held, ObjectStore, object_store, until

Job = pb.TrainingJob
URI = "s3://data/photos/"
IMAGES = 24
SECONDS = 60.0
SETTINGS: dict[str, Any] = {"object_root": ("s3://data/photos",), "max_object_bytes": 1 << 20}


def as_png(kind: str, number: int) -> bytes:
    """Returns dark cats and light dogs."""
    pixels = np.random.default_rng(number).integers(0, 100, (8, 8)) + (150 if kind == "dog" else 0)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pets() -> dict[str, bytes]:
    return {
        f"{kind}/{number}.png": as_png(kind, number)
        for kind in ("cat", "dog")
        for number in range(IMAGES // 2)
    }


def job(path: str, **folder: Any) -> pb.TrainingJobSpec:
    images = pb.ImageDataset(folder=pb.ImageFolder(path=path, **folder))
    return pb.TrainingJobSpec(
        dataset=pb.Dataset(images=images),
        split=pb.Split(validation_fraction=0.25, test_fraction=0.25),
        model=pb.ModelSpec(linear=pb.LinearModel()),
        loss=pb.Loss(cross_entropy=pb.CrossEntropy()),
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=0.1)),
        epochs=2,
        publication=pb.Publication(model="pets"),
    )


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(stores, "_FIRST_RETRY_SECONDS", 0.001)
    with object_store(monkeypatch) as store:
        store.objects.update({f"data/photos/{path}": content for path, content in pets().items()})
        yield store


@pytest.fixture
def house(tmp_path: Path) -> House:
    for path, content in pets().items():
        (tmp_path / "local" / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / "photos" / path).write_bytes(content)
    registry = ScriptedRegistry()  # type: ignore[abstract]  # answers what is asked here
    return House(tmp_path, registry, command=WORKER_COMMAND)


@pytest.fixture
async def trainer(house: House, store: ObjectStore) -> AsyncIterator[TrainerUnderTest]:
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(data_root=(str(house.tmp_path / "local"),), **SETTINGS) as trainer,
    ):
        yield trainer


async def copies_are_gone(trainer: TrainerUnderTest, name: str) -> None:
    """Returns when a job has none left: first it ends, then they go."""
    copies = trainer.directory(name) / "objects"
    await until(lambda: not copies.exists())


@pytest.fixture(params=["LIST", "GET"])
def held(store: ObjectStore, request: pytest.FixtureRequest) -> Iterator[Held]:
    """Holds the list of a folder, or its objects."""
    held = Held(store, request.param)
    yield held
    held.let_go()


@pytest.fixture
def held_objects(store: ObjectStore) -> Iterator[Held]:
    held = Held(store, "GET")
    yield held
    held.let_go()


class Hands:
    """A clock that a test sets."""

    now = 0.0


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    """The clock by which the trainer counts how long jobs run."""
    hands = Hands()

    def stopwatch(job: domain.Job, clock: object, **age: float) -> Stopwatch:
        del clock
        return Stopwatch(job, lambda: hands.now, **age)

    monkeypatch.setattr(supervisor, "Stopwatch", stopwatch)
    monkeypatch.setattr(preparation, "NOTE_SECONDS", 0.01)
    return hands


def stored(house: House, name: str) -> domain.Job:
    """Returns a job as it stands in the database of a trainer that is not there."""
    jobs = JobStore(open_database(house.tmp_path / "data" / "trainer.sqlite3"), max_queued_jobs=1)
    try:
        return jobs.get(TrainingJobName.parse(name))
    finally:
        jobs.close()


# What works


async def test_a_folder_of_objects_is_learned_like_the_same_folder_on_the_machine(
    trainer: TrainerUnderTest, store: ObjectStore
) -> None:
    store.objects["data/photos/read.me"] = b"no image"
    jobs = [await trainer.client.create_job(job(path)) for path in (URI, "photos")]
    ended = [await trainer.ended(one.name) for one in jobs]
    assert [one.state for one in ended] == [Job.STATE_SUCCEEDED] * 2, ended
    of_objects, of_files = (load_result(trainer.directory(one.name)).lineage for one in jobs)
    assert of_objects.dataset_sha256 == of_files.dataset_sha256
    await copies_are_gone(trainer, jobs[0].name)
    lines = [event.log_line.text for event in await trainer.events(jobs[0].name)]
    size = sum(map(len, pets().values()))
    assert (
        f"objects copied: {IMAGES}, of {size} bytes; left where they are: 1, which by their "
        "endings or places are no images of a class"
    ) in lines
    assert ended[0].spec.dataset.images.folder.path == URI


async def test_a_dry_run_reads_a_folder_of_objects(
    trainer: TrainerUnderTest, store: ObjectStore
) -> None:
    client = trainer.client.with_timeout(SECONDS)
    await client.create_job(job(URI), dry_run=True, validate_only=True)
    assert len([one for one in store.requests if one.startswith("GET")]) == IMAGES
    store.objects["data/photos/cat/0.png"] = b"no image"
    with pytest.raises(FailedPrecondition, match=r"dry run failed: DATA: the image 'cat/0\.png'"):
        await client.create_job(job(URI), dry_run=True, validate_only=True)


async def test_a_dry_run_that_copies_for_too_long_says_so(house: House, held_objects: Held) -> None:
    async with house.trainer(dry_run_seconds=1.0, **SETTINGS) as trainer:
        client = trainer.client.with_timeout(SECONDS)
        with pytest.raises(FailedPrecondition, match=r"not all copied after 1 s; .*--dry-run-sec"):
            await client.create_job(job(URI), dry_run=True, validate_only=True)
    held_objects.let_go()


async def test_a_client_that_gives_up_ends_the_copying_of_its_dry_run(
    trainer: TrainerUnderTest, held: Held
) -> None:
    client = trainer.client.with_timeout(SECONDS)
    asking = asyncio.ensure_future(client.create_job(job(URI), dry_run=True, validate_only=True))
    await held.asked()
    dry_runs = trainer.data_dir / "dry-runs"
    assert list(dry_runs.iterdir())
    asking.cancel()
    await until(lambda: not list(dry_runs.iterdir()))


# What may not be read


@pytest.mark.parametrize("uri", ["s3://data/", "s3://data/photos-secret/", "https://x/photos/"])
async def test_a_folder_outside_is_refused_at_once(
    trainer: TrainerUnderTest, store: ObjectStore, uri: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await trainer.client.create_job(job(uri))
    (violation,) = caught.value.violations
    assert violation.field == "training_job.spec.dataset.images.folder.path"
    assert "expected a folder that is, or is below, an --object-root" in violation.description
    assert store.requests == []


async def test_a_folder_with_more_objects_than_a_job_may_read_fails_it(
    house: House, store: ObjectStore
) -> None:
    async with house.trainer(max_objects=IMAGES - 1, **SETTINGS) as trainer:
        created = await trainer.client.create_job(job(URI))
        ended = await trainer.ended(created.name)
    assert (ended.state, ended.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_DATA)
    assert ended.error.message.startswith(
        f"dataset.images.folder.path: {URI}: more than {IMAGES - 1} objects are to be read"
    )


# Stopping meanwhile


async def test_a_job_is_cancelled_while_its_folder_is_copied(
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
    await copies_are_gone(trainer, created.name)


async def test_a_job_is_paused_while_its_folder_is_copied_and_copies_it_anew(
    trainer: TrainerUnderTest, held: Held
) -> None:
    created = await trainer.client.create_job(job(URI))
    await held.asked()
    await trainer.client.pause_job(created.name)
    await trainer.until_state(created.name, Job.STATE_PAUSED)
    held.let_go()
    await trainer.client.resume_job(created.name)
    ended = await trainer.ended(created.name)
    assert ended.state == Job.STATE_SUCCEEDED, ended.error


async def test_a_trainer_that_stops_while_it_copies_a_folder_goes_on_at_its_next_start(
    house: House, held: Held
) -> None:
    async with serving_registry(house.registry, house.registry_address):
        async with house.trainer(**SETTINGS) as trainer:
            created = await trainer.client.create_job(job(URI))
            await held.asked()
        held.let_go()
        async with house.trainer(**SETTINGS) as trainer:
            ended = await trainer.ended(created.name)
    assert (ended.state, ended.attempt) == (Job.STATE_SUCCEEDED, 2), ended.error


# How long it takes


async def test_a_job_expires_while_its_objects_are_copied(
    house: House, held_objects: Held, hands: Hands
) -> None:
    async with house.trainer(**SETTINGS) as trainer:
        policy = RunPolicy(max_run_seconds=90)
        created = await trainer.client.create_job(job(URI), policy=policy)
        await held_objects.asked()
        hands.now += 91
        ended = await trainer.ended(created.name)
        await copies_are_gone(trainer, created.name)
    assert (ended.state, ended.error.reason) == (Job.STATE_EXPIRED, pb.JobError.REASON_TIMEOUT)
    assert "ran for 91.0 s without a result; max_run_duration is 90 s" in ended.error.message
    held_objects.let_go()


async def test_the_time_in_which_objects_are_copied_is_none_that_the_process_has_left(
    house: House, held_objects: Held, hands: Hands
) -> None:
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(**SETTINGS) as trainer,
    ):
        policy = RunPolicy(max_run_seconds=90)
        created = await trainer.client.create_job(job(URI), policy=policy)
        await held_objects.asked()
        hands.now += 60
        held_objects.let_go()
        ended = await trainer.ended(created.name)
        assert ended.state == Job.STATE_SUCCEEDED, ended.error
    found = stored(house, created.name)
    # By the process's own clock, which the kernel keeps, an adopted one counts on from there.
    assert found.earlier_run_seconds == 60
    assert 60 < found.run_seconds < 90  # with the second look at its files


async def test_the_time_in_which_objects_were_copied_counts_after_a_pause(
    house: House, store: ObjectStore, held_objects: Held, hands: Hands
) -> None:
    async with house.trainer(**SETTINGS) as trainer:
        policy = RunPolicy(max_run_seconds=90)
        created = await trainer.client.create_job(job(URI), policy=policy)
        await held_objects.asked()
        hands.now += 4  # too little to be noted while it goes on
        await trainer.client.pause_job(created.name)
        await trainer.until_state(created.name, Job.STATE_PAUSED)
        await trainer.client.resume_job(created.name)
        # Of the first attempt requests for objects may still arrive, and so they tell nothing.
        await until(lambda: sum(one.startswith("LIST") for one in store.requests) == 2)
        hands.now += 87
        ended = await trainer.ended(created.name)
    assert ended.state == Job.STATE_EXPIRED
    assert "ran for 91.0 s" in ended.error.message
    held_objects.let_go()


async def test_the_time_of_a_trainer_that_dies_while_it_copies_was_noted(
    house: House, held_objects: Held, hands: Hands
) -> None:
    async with house.trainer(**SETTINGS) as trainer:
        policy = RunPolicy(max_run_seconds=90)
        created = await trainer.client.create_job(job(URI), policy=policy)
        await held_objects.asked()
        hands.now += 60
        # As another process finds it, while the copying goes on.
        await until(lambda: stored(house, created.name).run_seconds == 60)
    held_objects.let_go()
