"""The trainer over gRPC, with a worker that follows a script and a registry that can misbehave."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
import sqlalchemy

from modelrail.client.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ModelrailError,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    mapped_errors,
)
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server import errors
from modelrail_server.config import ConfigError
from modelrail_server.context import Context
from modelrail_trainer.jobs.job import JobEvent, LogLine
from modelrail_trainer.protocol.servicer import TrainerServicer
from modelrail_trainer.trainer import Trainer
from tests.integration.house import (
    SUCCESS,
    House,
    TrainerUnderTest,
    line_spec,
    processes_of,
    serving_registry,
    states,
)

Job = pb.TrainingJob


# From the specification to the version


async def test_a_job_goes_through_its_states_to_a_published_version(
    house: House, trainer: TrainerUnderTest
) -> None:
    created = await trainer.create()
    events = await trainer.events(created.name)
    job = await trainer.client.get_job(created.name)
    assert states(events) == [
        *("QUEUED", "PREPARING", "RUNNING", "EXPORTING", "REGISTERING", "SUCCEEDED")
    ]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert job.state == Job.STATE_SUCCEEDED
    assert job.model_version == "models/line/versions/1"
    assert (job.attempt, job.progress.epoch, job.progress.epochs) == (1, 1, 2)
    assert [(m.name, m.split, m.runtime) for m in job.metrics] == [
        ("accuracy", "test", "onnxruntime")
    ]
    assert job.create_time.ToDatetime() <= job.start_time.ToDatetime() <= job.end_time.ToDatetime()
    (version,) = house.registry.versions.values()
    assert version.lineage.training_job == job.name
    assert version.signature.inputs[0].shape[0].symbol == "batch"
    assert version.description == "a line"
    assert house.registry.aliases == {"models/line/aliases/production": "models/line/versions/1"}


async def test_the_specification_comes_back_as_it_was_sent(trainer: TrainerUnderTest) -> None:
    created = await trainer.create()
    assert created.spec == line_spec()
    await trainer.ended(created.name)


async def test_without_an_alias_none_is_moved(house: House, trainer: TrainerUnderTest) -> None:
    created = await trainer.create(alias="")
    assert (await trainer.ended(created.name)).state == Job.STATE_SUCCEEDED
    assert house.registry.aliases == {}


async def test_an_ended_job_keeps_its_log_and_not_its_model(house: House) -> None:
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer() as trainer,
    ):
        published = await trainer.create()
        assert (await trainer.ended(published.name)).state == Job.STATE_SUCCEEDED
        failed = await trainer.create("preparing running exporting model nan")
        assert (await trainer.ended(failed.name)).state == Job.STATE_FAILED
    # The state changes first and the files go after it, at the latest when the trainer stops.
    log = {"spec.binpb", "events.jsonl", "worker.log"}
    assert _kept(trainer, published.name) == {*log, "result.json"}
    assert _kept(trainer, failed.name) == log


def printed(events: list[pb.TrainingJobEvent]) -> list[tuple[int, str]]:
    return [(event.sequence, event.log_line.text) for event in events if event.log_line.text]


async def test_what_a_job_prints_is_streamed_while_it_runs_and_stays(house: House) -> None:
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer() as trainer,
    ):
        name = (await trainer.create("preparing print wait")).name
        async with asyncio.timeout(30):
            await trainer.until_line(name, "a line of\tPython")
        await trainer.client.cancel_job(name)
        lines = printed(await trainer.events(name))
        assert sorted(text for _, text in lines) == [
            *("a line of\tPython", "from place.so: half a", "waiting")
        ]
        first, *rest = lines
        after = [event async for event in trainer.client.watch_job(name, after_sequence=first[0])]
        assert printed(after) == rest
    async with house.trainer() as trainer:
        assert printed(await trainer.events(name)) == lines


async def test_what_a_job_prints_comes_once_across_a_restart_of_the_trainer(house: House) -> None:
    async with serving_registry(house.registry, house.registry_address):
        async with house.trainer() as trainer:
            name = (await trainer.create("preparing print gate print " + SUCCESS)).name
            await trainer.until_line(name, "at the gate")
        (house.tmp_path / "data" / "open").touch()
        async with house.trainer() as trainer:
            lines = [text for _, text in printed(await trainer.events(name))]
    # The first attempt was stopped, and printed once; the second one twice, with one end of a line.
    assert lines.count("a line of\tPython") == 2
    assert "from place.so: half a a line of\tPython" in lines


async def test_what_an_ended_job_left_is_removed_at_the_next_start(house: House) -> None:
    async with house.trainer() as trainer:
        ended = await trainer.create("preparing nan")
        await trainer.ended(ended.name)
        waiting = await trainer.create()
        await trainer.until_line(waiting.name, "registry")
    (trainer.directory(ended.name) / "model.onnx").touch()  # as after a crash before it was removed
    async with house.trainer():
        pass
    assert "model.onnx" not in _kept(trainer, ended.name)
    assert "model.onnx" in _kept(trainer, waiting.name)


def _kept(trainer: TrainerUnderTest, name: str) -> set[str]:
    return {path.name for path in trainer.directory(name).iterdir()}


async def test_a_worker_sees_no_credentials_and_works_in_a_private_place(
    trainer: TrainerUnderTest,
) -> None:
    created = await trainer.create("preparing environment wait")
    await trainer.until_line(created.name, "waiting")
    journal = (trainer.directory(created.name) / "events.jsonl").read_text()
    assert "PATH" in journal
    assert "SECRET" not in journal
    assert trainer.directory(created.name).stat().st_mode & 0o777 == 0o700
    await trainer.client.cancel_job(created.name)
    await trainer.ended(created.name)


async def test_jobs_wait_for_a_place_in_the_order_they_came(trainer: TrainerUnderTest) -> None:
    first = await trainer.create("preparing wait")
    await trainer.until_line(first.name, "waiting")
    second = await trainer.create()
    assert (await trainer.client.get_job(second.name)).state == Job.STATE_QUEUED
    await trainer.client.cancel_job(first.name)
    assert (await trainer.ended(second.name)).state == Job.STATE_SUCCEEDED
    assert [job.name async for job in trainer.client.list_jobs()] == [second.name, first.name]


# Failures


@pytest.mark.parametrize(
    ("script", "reason", "text"),
    [
        ("preparing running nan", "NAN_LOSS", "loss is nan"),
        ("preparing running crash", "PROCESS_DIED", "the roof is on fire"),
        ("preparing running kill", "PROCESS_DIED", "SIGKILL"),
        ("preparing running", "PROCESS_DIED", "exit code 0"),
        ("preparing garbage pause", "INTERNAL", "what its process left is damaged"),
        ("preparing exporting wait", "INTERNAL", "defect"),
        ("preparing running exporting save tamper finished", "INTERNAL", "sha256"),
    ],
)
async def test_a_failed_job_says_why_and_publishes_nothing(
    house: House, trainer: TrainerUnderTest, script: str, reason: str, text: str
) -> None:
    job = await trainer.ended((await trainer.create(script)).name)
    assert job.state == Job.STATE_FAILED
    assert pb.JobError.Reason.Name(job.error.reason) == f"REASON_{reason}"
    assert text in job.error.message
    assert str(trainer.data_dir) not in job.error.message
    assert house.registry.versions == {}


async def test_what_a_dead_worker_left_running_is_ended(trainer: TrainerUnderTest) -> None:
    created = await trainer.create("preparing child crash")
    await trainer.ended(created.name)
    assert processes_of(trainer) == []


# Cancellation


async def test_a_queued_job_is_cancelled_at_once(trainer: TrainerUnderTest) -> None:
    first = await trainer.create("preparing wait")
    second = await trainer.create()
    cancelled = await trainer.client.cancel_job(second.name)
    assert cancelled.state == Job.STATE_CANCELLED
    assert cancelled.error.reason == pb.JobError.REASON_CANCELLED_BY_USER
    await trainer.client.cancel_job(first.name)
    await trainer.ended(first.name)


@pytest.mark.parametrize("script", ["preparing running wait", "preparing running child wait"])
async def test_a_running_job_is_cancelled_with_everything_it_started(
    trainer: TrainerUnderTest, script: str
) -> None:
    created = await trainer.create(script)
    await trainer.until_line(created.name, "waiting")
    assert (await trainer.client.cancel_job(created.name)).state == Job.STATE_CANCELLING
    job = await trainer.ended(created.name)
    assert job.state == Job.STATE_CANCELLED
    assert job.error.reason == pb.JobError.REASON_CANCELLED_BY_USER
    assert processes_of(trainer) == []


async def test_a_job_that_ignores_sigterm_is_killed(house: House) -> None:
    async with house.trainer(cancel_grace_seconds=0.2) as trainer:
        created = await trainer.create("preparing stubborn wait")
        await trainer.until_line(created.name, "waiting")
        await trainer.client.cancel_job(created.name)
        assert (await trainer.ended(created.name)).state == Job.STATE_CANCELLED
        assert processes_of(trainer) == []


async def test_a_job_is_cancelled_while_its_files_are_uploaded(
    house: House, trainer: TrainerUnderTest
) -> None:
    house.registry.hold_uploads = asyncio.Event()
    created = await trainer.create()
    await house.registry.uploading.wait()
    await trainer.client.cancel_job(created.name)
    assert (await trainer.ended(created.name)).state == Job.STATE_CANCELLED
    assert house.registry.versions == {}


# The registry


async def test_a_registry_that_comes_late_gets_the_version_once(house: House) -> None:
    async with house.trainer() as trainer:
        created = await trainer.create()
        await trainer.until_line(created.name, "registry")
        waiting = await trainer.client.get_job(created.name)
        assert waiting.state == Job.STATE_REGISTERING
        assert waiting.error.reason == pb.JobError.REASON_REGISTRY_UNAVAILABLE
        assert str(house.tmp_path) not in waiting.error.message
        async with serving_registry(house.registry, house.registry_address):
            job = await trainer.ended(created.name)
    assert job.state == Job.STATE_SUCCEEDED
    assert not job.HasField("error")
    assert len(house.registry.versions) == 1


async def test_a_lost_answer_does_not_publish_twice(
    house: House, trainer: TrainerUnderTest
) -> None:
    house.registry.faults_after = [
        errors.Aborted("the answer is lost")
    ]  # the channel retries UNAVAILABLE
    job = await trainer.ended((await trainer.create()).name)
    assert job.state == Job.STATE_SUCCEEDED
    assert len(house.registry.versions) == 1


async def test_a_refused_version_fails_the_job(house: House, trainer: TrainerUnderTest) -> None:
    house.registry.faults = [errors.FailedPrecondition("the file is no valid ONNX")]
    job = await trainer.ended((await trainer.create()).name)
    assert job.state == Job.STATE_FAILED
    assert job.error.reason == pb.JobError.REASON_REGISTRY_REFUSED
    assert "no valid ONNX" in job.error.message


async def test_a_job_that_waits_for_the_registry_can_be_cancelled(house: House) -> None:
    async with house.trainer() as trainer:
        created = await trainer.create()
        await trainer.until_line(created.name, "registry")
        await trainer.client.cancel_job(created.name)
        assert (await trainer.ended(created.name)).state == Job.STATE_CANCELLED


# Restarts


async def test_an_orderly_stop_leaves_no_process_and_the_next_start_runs_the_job_again(
    house: House,
) -> None:
    async with house.trainer() as trainer:
        created = await trainer.create("preparing running gate exporting save finished")
        await trainer.until_line(created.name, "at the gate")
    assert processes_of(trainer) == []
    (trainer.data_dir / "open").touch()
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer() as trainer,
    ):
        events = await trainer.events(created.name)
        job = await trainer.client.get_job(created.name)
    assert job.state == Job.STATE_SUCCEEDED
    assert job.attempt == 2
    assert states(events)[:5] == ["QUEUED", "PREPARING", "RUNNING", "QUEUED", "PREPARING"]


async def test_a_job_that_waited_for_the_registry_is_published_after_a_restart(
    house: House,
) -> None:
    async with house.trainer() as trainer:
        created = await trainer.create()
        await trainer.until_line(created.name, "registry")
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer() as trainer,
    ):
        job = await trainer.ended(created.name)
    assert job.state == Job.STATE_SUCCEEDED
    assert job.attempt == 1
    assert len(house.registry.versions) == 1


async def test_a_second_trainer_is_refused_the_data_directory(house: House) -> None:
    async with house.trainer():
        with pytest.raises(ConfigError, match="in use"):
            async with house.trainer():
                raise AssertionError("two trainers own one directory")


# A full disk


async def test_a_job_that_the_disk_has_no_room_for_is_refused_as_such(house: House) -> None:
    def fill(connection: sqlite3.Connection, _: object) -> None:
        # It cannot be less than what is there: the database does not grow any more.
        connection.execute("PRAGMA max_page_count = 1").close()

    async with house.trainer():
        pass
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", fill)
    try:
        async with house.trainer() as trainer:
            spec = line_spec()
            spec.publication.description = "x" * 16_000
            with pytest.raises(ResourceExhausted, match="the storage is full") as caught:
                await trainer.client.create_job(spec)
            assert caught.value.reason == "STORAGE_FULL"
            assert [job async for job in trainer.client.list_jobs()] == []
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", fill)
    async with house.trainer() as trainer:
        await trainer.client.create_job(spec)


# Watching


async def test_a_watch_resumes_after_a_position(trainer: TrainerUnderTest) -> None:
    created = await trainer.create()
    events = await trainer.events(created.name)
    later = [event async for event in trainer.client.watch_job(created.name, after_sequence=3)]
    assert later == events[3:]


async def test_a_watch_that_the_client_leaves_lets_go_of_the_job() -> None:
    class Watched:
        left = False

        async def watch(self, name: object, after_sequence: int) -> AsyncIterator[JobEvent]:
            try:
                while True:
                    yield JobEvent(1, datetime.now(UTC), LogLine("a line"))
            finally:
                self.left = True

    watched = Watched()
    servicer = TrainerServicer(cast(Trainer, watched))
    responses = cast(
        "AsyncGenerator[pb.WatchTrainingJobResponse, None]",
        servicer.WatchTrainingJob(
            pb.WatchTrainingJobRequest(name="trainingJobs/a"), cast(Context, None)
        ),
    )
    assert (await anext(responses)).event.log_line.text == "a line"
    await responses.aclose()
    assert watched.left


async def test_a_watch_ends_when_the_service_stops(trainer: TrainerUnderTest) -> None:
    created = await trainer.create("preparing wait")
    await trainer.until_line(created.name, "waiting")
    stream = trainer.stub.WatchTrainingJob(pb.WatchTrainingJobRequest(name=created.name))
    await stream.read()
    trainer.runtime.stopping.set()
    while await stream.read() is not grpc.aio.EOF:
        pass
    assert await stream.code() is grpc.StatusCode.OK


# Bad input


def _changed(change: Callable[[pb.TrainingJobSpec], object]) -> pb.CreateTrainingJobRequest:
    spec = line_spec()
    change(spec)
    return pb.CreateTrainingJobRequest(training_job=Job(spec=spec))


def _with_unknown_field() -> pb.CreateTrainingJobRequest:
    spec = line_spec()
    # Field 99 as a varint, in the middle of the model.
    spec.model.linear.MergeFromString(b"\x98\x06\x01")
    return pb.CreateTrainingJobRequest(training_job=Job(spec=spec))


S = "training_job.spec"
BAD_JOBS = {
    "an unknown data set": (
        _changed(lambda s: setattr(s.dataset, "bundled", "imagenet")),
        (f"{S}.dataset.bundled", "digits", "imagenet"),
    ),
    "no data set": (
        _changed(lambda s: s.dataset.ClearField("source")),
        (f"{S}.dataset", "bundled", "none"),
    ),
    "an unknown field": (_with_unknown_field(), (f"{S}.model.linear.99", "LinearModel", "99")),
    "too many points": (
        _changed(lambda s: setattr(s.dataset.line, "points", 2_000_000)),
        (f"{S}.dataset.line.points", "1000000", "2000000"),
    ),
    "no epochs": (_changed(lambda s: setattr(s, "epochs", 0)), (f"{S}.epochs", "1", "0")),
    "a loss for classes": (
        _changed(lambda s: s.loss.cross_entropy.SetInParent()),
        (f"{S}.loss", "mse", "cross_entropy"),
    ),
    "a learning rate of nothing": (
        _changed(lambda s: setattr(s.optimizer.gradient_descent, "learning_rate", 0)),
        (f"{S}.optimizer.gradient_descent.learning_rate", "above 0", "0"),
    ),
    "a model name that climbs": (
        _changed(lambda s: setattr(s.publication, "model", "../../etc")),
        (f"{S}.publication.model", "must match", "../../etc"),
    ),
    "an alias that is a number": (
        _changed(lambda s: setattr(s.publication, "alias", "3")),
        (f"{S}.publication.alias", "number", "3"),
    ),
    "a request id that is no UUID4": (
        pb.CreateTrainingJobRequest(training_job=Job(spec=line_spec()), request_id="once"),
        ("request_id", "UUID4", "once"),
    ),
}


@pytest.mark.parametrize("case", BAD_JOBS)
async def test_a_bad_job_names_the_field_and_creates_nothing(
    trainer: TrainerUnderTest, case: str
) -> None:
    request, (wrong_field, expected, got) = BAD_JOBS[case]
    with pytest.raises(InvalidArgument) as caught, mapped_errors():
        await trainer.stub.CreateTrainingJob(request)
    (violation,) = caught.value.violations
    assert violation.field == wrong_field
    assert expected in violation.description
    assert got in violation.description
    assert [job async for job in trainer.client.list_jobs()] == []


async def test_every_wrong_field_is_named_at_once(trainer: TrainerUnderTest) -> None:
    request = pb.CreateTrainingJobRequest()
    with pytest.raises(InvalidArgument) as caught, mapped_errors():
        await trainer.stub.CreateTrainingJob(request)
    assert {violation.field for violation in caught.value.violations} >= {
        *(f"{S}.dataset", f"{S}.model", f"{S}.loss", f"{S}.optimizer", f"{S}.epochs")
    }


def table_spec(*paths: str) -> pb.TrainingJobSpec:
    spec = line_spec()
    spec.dataset.table.paths.extend(paths)
    spec.dataset.table.target = "y"
    return spec


async def test_a_value_of_an_enumeration_that_nobody_knows_is_named(
    trainer: TrainerUnderTest,
) -> None:
    spec = table_spec("a.csv")
    spec.dataset.table.columns.add(name="x").number.scale = 77  # type: ignore[assignment]
    with pytest.raises(InvalidArgument) as caught:
        await trainer.client.create_job(spec)
    (violation,) = caught.value.violations
    assert violation.field == f"{S}.dataset.table.columns[0].number.scale"
    assert "SCALE_MIN_MAX" in violation.description
    assert "77" in violation.description


async def test_files_are_read_below_the_data_roots_alone(house: House, tmp_path: Path) -> None:
    root = tmp_path / "data root"
    root.mkdir()
    (root / "inside.csv").write_text("x,y\n1,2\n")
    (tmp_path / "outside.csv").write_text("x,y\n1,2\n")
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(data_root=(str(root),)) as trainer,
    ):
        outside = str(tmp_path / "outside.csv")
        with pytest.raises(InvalidArgument) as caught:
            await trainer.client.create_job(table_spec("inside.csv", outside, "absent.csv"))
        assert [(v.field, "--data-root" in v.description) for v in caught.value.violations] == [
            (f"{S}.dataset.table.paths[1]", True),
            (f"{S}.dataset.table.paths[2]", True),
        ]
        request = pb.CreateTrainingJobRequest(
            training_job=Job(spec=table_spec("inside.csv")), request_id=str(uuid.uuid4())
        )
        job = await trainer.stub.CreateTrainingJob(request)
        assert (await trainer.ended(job.name)).state == Job.STATE_SUCCEEDED
        (root / "inside.csv").unlink()
        assert (await trainer.stub.CreateTrainingJob(request)).name == job.name


async def test_folders_and_files_of_images_are_looked_for_below_the_data_roots(
    house: House, tmp_path: Path
) -> None:
    root = tmp_path / "data root"
    (root / "animals").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "file").touch()
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(data_root=(str(root),)) as trainer,
    ):
        spec = line_spec()
        spec.loss.cross_entropy.SetInParent()
        for path in ("absent", "file", str(tmp_path / "outside")):
            spec.dataset.images.folder.path = path
            with pytest.raises(InvalidArgument) as caught:
                await trainer.client.create_job(spec)
            (violation,) = caught.value.violations
            assert violation.field == f"{S}.dataset.images.folder.path"
            assert "expected a folder below a --data-root" in violation.description
        spec.dataset.images.idx.images = "file"
        spec.dataset.images.idx.labels = "animals"
        with pytest.raises(InvalidArgument) as caught:
            await trainer.client.create_job(spec)
        assert [v.field for v in caught.value.violations] == [f"{S}.dataset.images.idx.labels"]
        spec.dataset.images.folder.path = "animals"
        job = await trainer.client.create_job(spec)
        assert (await trainer.ended(job.name)).state == Job.STATE_SUCCEEDED


async def test_without_a_data_root_no_file_is_read(trainer: TrainerUnderTest) -> None:
    with pytest.raises(InvalidArgument, match="without --data-root"):
        await trainer.client.create_job(table_spec("/etc/hostname.csv"))


async def test_a_data_root_that_is_no_folder_stops_the_start(house: House) -> None:
    with pytest.raises(ConfigError, match="data_root: expected a folder"):
        async with house.trainer(data_root=(str(house.tmp_path / "absent"),)):
            pass


BAD_CALLS: dict[str, tuple[str, object, type[ModelrailError], str]] = {
    "get: malformed": ("GetTrainingJob", pb.GetTrainingJobRequest(name="x"), InvalidArgument, "x"),
    "get: climbing": (
        "GetTrainingJob",
        pb.GetTrainingJobRequest(name="trainingJobs/../../x"),
        InvalidArgument,
        "trainingJobs/",
    ),
    "get: unknown": (
        "GetTrainingJob",
        pb.GetTrainingJobRequest(name="trainingJobs/nobody"),
        NotFound,
        "trainingJobs/nobody",
    ),
    "cancel: unknown": (
        "CancelTrainingJob",
        pb.CancelTrainingJobRequest(name="trainingJobs/nobody"),
        NotFound,
        "trainingJobs/nobody",
    ),
    "list: negative size": (
        "ListTrainingJobs",
        pb.ListTrainingJobsRequest(page_size=-1),
        InvalidArgument,
        "-1",
    ),
    "list: foreign token": (
        "ListTrainingJobs",
        pb.ListTrainingJobsRequest(page_token="nonsense"),
        InvalidArgument,
        "page_token",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
async def test_a_bad_call_gets_its_status(trainer: TrainerUnderTest, case: str) -> None:
    method, request, error, text = BAD_CALLS[case]
    with pytest.raises(error, match=text), mapped_errors():
        await getattr(trainer.stub, method)(request)


@pytest.mark.parametrize(
    ("name", "after_sequence", "error", "text"),
    [
        ("trainingJobs/nobody", 0, NotFound, "nobody"),
        ("", 0, InvalidArgument, "trainingJobs/"),
        (None, -1, InvalidArgument, "after_sequence"),
        (None, 1000, OutOfRange, "1000"),
    ],
)
async def test_a_bad_watch_gets_its_status(
    trainer: TrainerUnderTest,
    name: str | None,
    after_sequence: int,
    error: type[ModelrailError],
    text: str,
) -> None:
    if name is None:
        name = (await trainer.create()).name
        await trainer.ended(name)
    request = pb.WatchTrainingJobRequest(name=name, after_sequence=after_sequence)
    with pytest.raises(error, match=text), mapped_errors():
        await trainer.stub.WatchTrainingJob(request).read()


async def test_a_request_id_makes_one_job_and_no_other(trainer: TrainerUnderTest) -> None:
    request_id = str(uuid.uuid4())
    first = await trainer.client.create_job(line_spec(), request_id=request_id)
    again = await trainer.client.create_job(line_spec(), request_id=request_id.upper())
    assert again.name == first.name
    with pytest.raises(AlreadyExists, match="request_id"):
        await trainer.client.create_job(line_spec("crash"), request_id=request_id)
    assert [job.name async for job in trainer.client.list_jobs()] == [first.name]
    await trainer.ended(first.name)


async def test_an_ended_job_cannot_be_cancelled(trainer: TrainerUnderTest) -> None:
    created = await trainer.create()
    await trainer.ended(created.name)
    with pytest.raises(FailedPrecondition, match="SUCCEEDED"):
        await trainer.client.cancel_job(created.name)


async def test_a_full_queue_is_told(house: House) -> None:
    async with house.trainer(max_queued_jobs=1) as trainer:
        running = await trainer.create("preparing wait")
        await trainer.until_line(running.name, "waiting")
        await trainer.create()
        with pytest.raises(ResourceExhausted, match="1 jobs wait"):
            await trainer.create()


# The process


def test_the_service_imports_no_training_library() -> None:
    code = (
        "import sys, modelrail_trainer.__main__\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'sklearn', 'onnxscript'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_method_has_a_row_in_the_policy() -> None:
    from modelrail_trainer.protocol.policy import POLICY

    service = pb.DESCRIPTOR.services_by_name["TrainerService"]
    assert set(POLICY) == {f"/{service.full_name}/{method.name}" for method in service.methods}


# Code of the owner


def custom_spec(model: str, **arguments: Any) -> pb.TrainingJobSpec:
    spec = line_spec()
    spec.model.custom.entry_point = model
    spec.model.custom.arguments.update(arguments)
    return spec


async def test_without_a_folder_of_user_code_no_job_may_name_a_function(
    trainer: TrainerUnderTest,
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await trainer.client.create_job(custom_spec("nets:build"))
    (violation,) = caught.value.violations
    assert violation.field == "training_job.spec.model.custom.entry_point"
    assert violation.description == (
        "this trainer runs no code of the owners of jobs; ask its operator to start it with "
        "--user-code and a folder that has the module 'nets'"
    )


async def test_functions_are_taken_from_the_folders_of_user_code_alone(
    house: House, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "code", tmp_path / "outside"
    (folder / "package").mkdir(parents=True)
    outside.mkdir()
    for path in ("nets.py", "package/deep.py", "numpy.py", "json.py"):
        (folder / path).write_text("def build(facts): ...\n")
    (outside / "secret.py").write_text("def build(facts): ...\n")
    (folder / "linked.py").symlink_to(outside / "secret.py")
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(user_code=(str(folder),)) as trainer,
    ):
        for good in ("nets:build", "package.deep:build"):
            job = await trainer.client.create_job(custom_spec(good, width=8, names=["a", None]))
            assert job.spec.model.custom.arguments["width"] == 8
        wrong = {
            "secret:build": "got 'secret'; ask its operator to put 'secret' there",
            "linked:build": "got 'linked'; ask its operator to put 'linked' there",
            "os:system": "'os' is the name of an installed package",
            "os.path:join": "'os' is the name of an installed package",
            "numpy:build": "'numpy' is the name of an installed package",
            "json:build": "'json' is the name of an installed package",
            "modelrail_trainer.worker.job:run_job": "'modelrail_trainer' is the name of an",
            "..outside.secret:build": "expected module:function",
            "../outside/secret:build": "expected module:function",
            "nets": "expected module:function",
            "nets:build()": "expected module:function",
            "nets:import": "expected module:function",
            "": "expected module:function",
        }
        for name, expected in wrong.items():
            with pytest.raises(InvalidArgument) as caught:
                await trainer.client.create_job(custom_spec(name))
            (violation,) = caught.value.violations
            assert violation.field == "training_job.spec.model.custom.entry_point"
            assert expected in violation.description
            assert str(tmp_path) not in str(caught.value)


async def test_a_folder_of_user_code_that_is_none_stops_the_start(house: House) -> None:
    with pytest.raises(ConfigError, match="user_code: expected a folder"):
        async with house.trainer(user_code=(str(house.tmp_path / "absent"),)):
            pass


async def test_nothing_is_asked_of_an_import_that_it_has_no_use_for(
    house: House, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text("def build(facts): ...\n")
    spec = custom_spec("nets:build")
    spec.epochs = 0
    spec.preprocessing.add().standardize.SetInParent()
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(user_code=(str(tmp_path),)) as trainer,
    ):
        with pytest.raises(InvalidArgument) as caught:
            await trainer.client.create_job(spec)
        assert [violation.field for violation in caught.value.violations] == [
            "training_job.spec.optimizer",
            "training_job.spec.preprocessing",
        ]
        spec.ClearField("preprocessing")
        spec.ClearField("optimizer")
        spec.ClearField("loss")
        await trainer.client.create_job(spec, validate_only=True)
        spec.model.linear.SetInParent()
        with pytest.raises(InvalidArgument) as caught:
            await trainer.client.create_job(spec)
        assert [violation.field for violation in caught.value.violations] == [
            "training_job.spec.loss",
            "training_job.spec.optimizer",
            "training_job.spec.epochs",
        ]
