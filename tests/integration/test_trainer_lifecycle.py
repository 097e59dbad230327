"""The life of a job over gRPC and through the CLI: who moved it, its turn, how it ends."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from modelrail.client.channel import Connection
from modelrail.client.errors import FailedPrecondition, InvalidArgument, NotFound, mapped_errors
from modelrail.client.trainer import AsyncTrainerClient, RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.access.api_keys import new_key, write_keys
from modelrail_server.policy import Permission
from modelrail_trainer.execution import supervisor
from tests.integration.house import (
    House,
    TrainerUnderTest,
    cli,
    line_spec,
    processes_of,
    serving_registry,
    states,
)

Job = pb.TrainingJob


def actors(events: list[pb.TrainingJobEvent]) -> list[str]:
    return [event.state_change.actor for event in events if event.HasField("state_change")]


# Who brought it about


async def test_events_name_the_client_whose_key_asked(house: House) -> None:
    keys = {name: new_key(name, [Permission.READ, Permission.WRITE]) for name in ("alice", "bob")}
    file = house.tmp_path / "keys.json"
    write_keys(file, [record for _, record in keys.values()])
    async with house.trainer(api_keys_file=file):  # type: ignore[arg-type]  # no figure
        alice, bob = (
            AsyncTrainerClient(Connection(address=f"unix:{house.tmp_path}/t.sock", api_key=text))
            for text, _ in keys.values()
        )
        async with alice, bob:
            name = (await alice.create_job(line_spec("preparing running wait"))).name
            async for event in alice.watch_job(name):
                if event.log_line.text == "waiting":
                    break
            await bob.cancel_job(name)
            events = [event async for event in alice.watch_job(name)]
    assert states(events) == ["QUEUED", "PREPARING", "RUNNING", "CANCELLING", "CANCELLED"]
    assert actors(events) == ["alice", "trainer", "worker", "bob", "trainer"]


async def test_the_command_line_tells_who_cancelled_a_job(
    house: House, trainer: TrainerUnderTest
) -> None:
    created = await trainer.create("preparing running wait")
    await trainer.until_line(created.name, "waiting")
    await trainer.client.cancel_job(created.name)
    status, output = await cli(house, "jobs", "watch", created.name)
    assert status == 1
    assert "job is being stopped (asked for by owner): a client cancelled the job" in output
    assert "job waits for its turn\n" in output


# Silence


async def test_a_job_that_makes_no_progress_is_stopped_and_says_so(house: House) -> None:
    async with house.trainer(max_job_silence_seconds=1) as trainer:
        created = await trainer.create("preparing running wait")
        job = await trainer.ended(created.name)
        assert processes_of(trainer) == []
    assert job.state == Job.STATE_FAILED
    assert job.error.reason == pb.JobError.REASON_STALLED
    assert "no step was made" in job.error.message
    assert "--max-job-silence-seconds" in job.error.message


async def test_a_silent_job_has_its_retries(house: House) -> None:
    async with house.trainer(max_job_silence_seconds=1) as trainer:
        job = await trainer.client.create_job(
            line_spec("preparing running wait"), policy=RunPolicy(max_retries=1)
        )
        events = await trainer.events(job.name)
        job = await trainer.client.get_job(job.name)
    assert states(events).count("RESTARTING") == 1
    assert (job.attempt, job.error.reason) == (2, pb.JobError.REASON_STALLED)


async def test_a_job_that_hangs_again_and_again_is_given_up_before_its_retries_are_used_up(
    house: House,
) -> None:
    async with house.trainer(max_job_silence_seconds=1) as trainer:
        # Another failure in between has a budget of its own.
        script = "preparing die_once running wait"
        job = await trainer.client.create_job(line_spec(script), policy=RunPolicy(max_retries=10))
        events = await trainer.events(job.name)
        job = await trainer.client.get_job(job.name)
    restarts = [
        event.state_change.error.reason
        for event in events
        if event.state_change.new_state == Job.STATE_RESTARTING
    ]
    died, stalled = pb.JobError.REASON_PROCESS_DIED, pb.JobError.REASON_STALLED
    assert restarts == [died, stalled, stalled]
    assert (job.state, job.attempt, job.error.reason) == (Job.STATE_FAILED, 4, stalled)
    assert job.error.message.startswith("retries: 3; ")


# The queue


async def test_the_next_place_goes_to_the_highest_priority(
    house: House, trainer: TrainerUnderTest
) -> None:
    first = await trainer.create("preparing running wait")
    await trainer.until_line(first.name, "waiting")
    low = await trainer.client.create_job(line_spec(), policy=RunPolicy(priority=-1))
    high = await trainer.client.create_job(line_spec(), policy=RunPolicy(priority=100))
    assert (low.priority, high.priority) == (-1, 100)
    _, output = await cli(house, "jobs", "show", high.name)
    assert "priority 100" in output
    await trainer.client.cancel_job(first.name)
    low, high = await trainer.ended(low.name), await trainer.ended(high.name)
    assert high.start_time.ToDatetime() < low.start_time.ToDatetime()
    newest_first = [job.name async for job in trainer.client.list_jobs()]
    assert newest_first == [high.name, low.name, first.name]


@pytest.mark.parametrize("priority", [-101, 101])
async def test_a_priority_out_of_range_is_refused_by_name(
    trainer: TrainerUnderTest, priority: int
) -> None:
    with pytest.raises(InvalidArgument, match="from -100 to 100") as caught:
        await trainer.client.create_job(line_spec(), policy=RunPolicy(priority=priority))
    assert [violation.field for violation in caught.value.violations] == ["training_job.priority"]


# Limits of time


async def test_a_job_whose_time_is_up_is_stopped_and_expires(
    house: House, trainer: TrainerUnderTest
) -> None:
    created = await trainer.client.create_job(
        line_spec("preparing running child wait"), policy=RunPolicy(max_run_seconds=1.0)
    )
    assert created.max_run_duration.ToTimedelta() == timedelta(seconds=1)
    job = await trainer.ended(created.name)
    assert job.state == Job.STATE_EXPIRED
    assert job.error.reason == pb.JobError.REASON_TIMEOUT
    assert "max_run_duration is 1 s" in job.error.message
    assert job.HasField("end_time")
    assert processes_of(trainer) == []
    status, output = await cli(house, "jobs", "watch", created.name)
    assert status == 1
    assert "job expired: it ran for" in output


async def test_a_job_that_ends_in_its_time_is_not_disturbed(trainer: TrainerUnderTest) -> None:
    created = await trainer.client.create_job(line_spec(), policy=RunPolicy(max_run_seconds=600))
    assert (await trainer.ended(created.name)).state == Job.STATE_SUCCEEDED


async def test_the_time_of_all_attempts_counts(house: House) -> None:
    async with house.trainer() as trainer:
        created = await trainer.client.create_job(
            line_spec("preparing running wait"), policy=RunPolicy(max_run_seconds=3600)
        )
        await trainer.until_line(created.name, "waiting")
    with closing(sqlite3.connect(trainer.data_dir / "trainer.sqlite3")) as database:
        ((state, seconds),) = database.execute("SELECT state, run_seconds FROM jobs").fetchall()
        assert state == "QUEUED"
        assert 0 < seconds < 3600
        database.execute("UPDATE jobs SET run_seconds = 3600")
        database.commit()
    async with house.trainer() as trainer:
        job = await trainer.ended(created.name)
    assert job.state == Job.STATE_EXPIRED
    assert job.attempt == 1
    assert job.error.message.endswith("max_run_duration is 3600 s")


async def test_a_job_that_is_still_queued_at_its_expire_time_expires(
    trainer: TrainerUnderTest,
) -> None:
    first = await trainer.create("preparing running wait")
    await trainer.until_line(first.name, "waiting")
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    second = await trainer.client.create_job(line_spec(), policy=RunPolicy(expire_time=soon))
    assert second.expire_time.ToDatetime(UTC) == soon
    job = await trainer.ended(second.name)
    assert job.state == Job.STATE_EXPIRED
    assert job.error.reason == pb.JobError.REASON_TIMEOUT
    assert job.attempt == 0
    assert job.end_time.ToDatetime(UTC) >= soon
    assert (await trainer.client.get_job(first.name)).state == Job.STATE_RUNNING


async def test_a_job_that_comes_too_late_never_starts(trainer: TrainerUnderTest) -> None:
    policy = RunPolicy(expire_time=datetime(2026, 1, 1, tzinfo=UTC))
    job = await trainer.ended((await trainer.client.create_job(line_spec(), policy=policy)).name)
    assert (job.state, job.attempt) == (Job.STATE_EXPIRED, 0)


WRONG_POLICIES = {
    "retries without end": (Job(max_retries=11), "max_retries"),
    "fewer than no retries": (Job(max_retries=-1), "max_retries"),
    "a negative duration": (Job(max_run_duration=Duration(seconds=-1)), "max_run_duration"),
    "a duration below its unit": (Job(max_run_duration=Duration(nanos=999)), "max_run_duration"),
    "a duration beyond all bounds": (
        Job(max_run_duration=Duration(seconds=1 << 62)),
        "max_run_duration",
    ),
    "a time beyond all bounds": (Job(expire_time=Timestamp(seconds=1 << 62)), "expire_time"),
    "a time with too many nanoseconds": (
        Job(expire_time=Timestamp(nanos=1_000_000_000)),
        "expire_time",
    ),
}


@pytest.mark.parametrize("case", WRONG_POLICIES)
async def test_a_limit_that_makes_no_sense_is_refused_by_name(
    trainer: TrainerUnderTest, case: str
) -> None:
    job, field = WRONG_POLICIES[case]
    job.spec.CopyFrom(line_spec())
    with pytest.raises(InvalidArgument, match="expected") as caught, mapped_errors():
        await trainer.stub.CreateTrainingJob(pb.CreateTrainingJobRequest(training_job=job))
    assert [violation.field for violation in caught.value.violations] == [f"training_job.{field}"]


async def test_the_command_line_submits_with_priority_and_limits(
    house: House, trainer: TrainerUnderTest
) -> None:
    status, output = await cli(
        house,
        *("train", "examples/linear.yaml", "--detach", "--priority", "3"),
        *("--max-run-seconds", "90", "--start-within-seconds", "3600", "--max-retries", "2"),
    )
    assert status == 0, output
    (job,) = [job async for job in trainer.client.list_jobs()]
    assert (job.priority, job.max_run_duration.seconds, job.max_retries) == (3, 90, 2)
    assert timedelta(minutes=59) < job.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    _, output = await cli(house, "jobs", "show", job.name)
    assert "runs for 90 s at most" in output
    assert "unless started" in output
    assert "retries  2 at most" in output


async def test_the_command_line_says_which_options_a_trainer_that_runs_does_not_heed(
    house: House, trainer: TrainerUnderTest
) -> None:
    job = ("train", "examples/linear.yaml", "--detach")
    folder = str(house.tmp_path)
    _, output = await cli(house, *job, "--user-code", folder, "--data-root", folder)
    [told] = [line for line in output.splitlines() if line.startswith("a trainer runs at unix:")]
    assert "takes the job: --data-root and --user-code would count only" in told
    _, output = await cli(house, *job, "--user-code", folder)
    assert "takes the job: --user-code would count only" in output
    _, output = await cli(house, *job)
    assert "would count only" not in output


# Pausing


async def test_a_running_job_is_paused_and_runs_again_when_it_is_resumed(
    house: House, trainer: TrainerUnderTest
) -> None:
    created = await trainer.create("preparing running gate child exporting save finished")
    await trainer.until_line(created.name, "at the gate")
    assert (await cli(house, "jobs", "pause", created.name))[0] == 0
    await trainer.until_state(created.name, Job.STATE_PAUSED)
    assert processes_of(trainer) == []
    # Its place is free for others.
    other = await trainer.create()
    assert (await trainer.ended(other.name)).state == Job.STATE_SUCCEEDED
    assert (await trainer.client.get_job(created.name)).state == Job.STATE_PAUSED
    (trainer.data_dir / "open").touch()
    status, output = await cli(house, "jobs", "resume", created.name)
    assert (status, output) == (0, f"{created.name} is queued\n")
    events = await trainer.events(created.name)
    assert states(events) == [
        *("QUEUED", "PREPARING", "RUNNING", "PAUSING", "PAUSED"),
        *("QUEUED", "PREPARING", "RUNNING", "EXPORTING", "REGISTERING", "SUCCEEDED"),
    ]
    assert actors(events)[3:6] == ["owner", "trainer", "owner"]
    assert (await trainer.client.get_job(created.name)).attempt == 2
    _, output = await cli(house, "jobs", "watch", created.name)
    assert "job is being paused (asked for by owner)" in output
    assert "job is paused until it is resumed\n" in output
    assert "job waits for its turn (asked for by owner)" in output


async def test_a_job_that_ignores_the_request_to_pause_is_killed(house: House) -> None:
    async with house.trainer(cancel_grace_seconds=0.2) as trainer:
        created = await trainer.create("preparing running stubborn wait")
        await trainer.until_line(created.name, "waiting")
        assert (await trainer.client.pause_job(created.name)).state == Job.STATE_PAUSING
        await trainer.until_state(created.name, Job.STATE_PAUSED)
        assert processes_of(trainer) == []


async def test_a_paused_job_is_cancelled_at_once_and_leaves_no_files(
    house: House,
) -> None:
    async with house.trainer() as trainer:
        created = await trainer.create("preparing running model wait")
        await trainer.until_line(created.name, "waiting")
        await trainer.client.pause_job(created.name)
        await trainer.until_state(created.name, Job.STATE_PAUSED)
        model = trainer.directory(created.name) / "model.onnx"
        assert model.exists()
        assert (await trainer.client.cancel_job(created.name)).state == Job.STATE_CANCELLED
    # The files go after the state, at the latest when the trainer stops.
    assert not model.exists()


async def test_a_paused_job_stays_paused_over_a_restart_of_the_trainer(house: House) -> None:
    async with house.trainer() as trainer:
        running = await trainer.create("preparing running wait")
        await trainer.until_line(running.name, "waiting")
        queued = await trainer.create()
        assert (await trainer.client.pause_job(queued.name)).state == Job.STATE_PAUSED
        await trainer.client.pause_job(running.name)
        await trainer.until_state(running.name, Job.STATE_PAUSED)
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer() as trainer,
    ):
        third = await trainer.create()
        assert (await trainer.ended(third.name)).state == Job.STATE_SUCCEEDED
        jobs = [await trainer.client.get_job(name) for name in (running.name, queued.name)]
        assert [(job.state, job.attempt) for job in jobs] == [
            (Job.STATE_PAUSED, 1),
            (Job.STATE_PAUSED, 0),
        ]
        await trainer.client.resume_job(queued.name)
        assert (await trainer.ended(queued.name)).state == Job.STATE_SUCCEEDED


async def test_a_job_that_was_being_paused_when_the_trainer_died_is_paused(house: House) -> None:
    async with house.trainer() as trainer:
        created = await trainer.create("preparing running wait")
        await trainer.until_line(created.name, "waiting")
    with closing(sqlite3.connect(trainer.data_dir / "trainer.sqlite3")) as database:
        database.execute("UPDATE jobs SET state = 'PAUSING'")
        database.commit()
    async with house.trainer() as trainer:
        await trainer.until_state(created.name, Job.STATE_PAUSED)


async def test_a_result_that_was_there_before_the_pause_is_published(
    house: House, trainer: TrainerUnderTest
) -> None:
    created = await trainer.create("preparing running exporting save wait")
    await trainer.until_line(created.name, "waiting")
    await trainer.client.pause_job(created.name)
    job = await trainer.ended(created.name)
    assert job.state == Job.STATE_SUCCEEDED
    assert len(house.registry.versions) == 1


@pytest.mark.parametrize("method", ["pause_job", "resume_job"])
async def test_an_ended_or_unknown_job_is_neither_paused_nor_resumed(
    trainer: TrainerUnderTest, method: str
) -> None:
    created = await trainer.create()
    await trainer.ended(created.name)
    with pytest.raises(FailedPrecondition, match="SUCCEEDED"):
        await getattr(trainer.client, method)(created.name)
    with pytest.raises(NotFound):
        await getattr(trainer.client, method)("trainingJobs/nobody")
    with pytest.raises(InvalidArgument):
        await getattr(trainer.client, method)("nobody")


# Retries


async def test_a_job_whose_process_died_runs_again_and_its_events_tell_it(
    house: House, trainer: TrainerUnderTest
) -> None:
    created = await trainer.client.create_job(
        line_spec("preparing running die_once exporting save finished"),
        policy=RunPolicy(max_retries=2),
    )
    assert created.max_retries == 2
    events = await trainer.events(created.name)
    assert states(events) == [
        *("QUEUED", "PREPARING", "RUNNING", "RESTARTING"),
        *("QUEUED", "PREPARING", "RUNNING", "EXPORTING", "REGISTERING", "SUCCEEDED"),
    ]
    (restart,) = (
        event.state_change
        for event in events
        if event.state_change.new_state == Job.STATE_RESTARTING
    )
    assert restart.error.reason == pb.JobError.REASON_PROCESS_DIED
    assert restart.error.message.startswith(
        "retry 1 of 2 follows: the process was ended by SIGKILL"
    )
    assert restart.actor == "trainer"
    job = await trainer.client.get_job(created.name)
    assert (job.attempt, job.HasField("error")) == (2, False)
    _, output = await cli(house, "jobs", "watch", created.name)
    assert "job will be tried again: retry 1 of 2 follows" in output


async def test_a_job_fails_when_its_retries_are_used_up(trainer: TrainerUnderTest) -> None:
    policy = RunPolicy(max_retries=1)
    created = await trainer.client.create_job(line_spec("preparing kill"), policy=policy)
    events = await trainer.events(created.name)
    assert states(events) == [
        *("QUEUED", "PREPARING", "RESTARTING", "QUEUED", "PREPARING", "FAILED")
    ]
    job = await trainer.client.get_job(created.name)
    assert job.error.reason == pb.JobError.REASON_PROCESS_DIED
    assert job.error.message.startswith("retries: 1; ")
    assert "before there was a result; clone the job, or " in job.error.message
    assert "--max-retries" in job.error.message


async def test_a_failure_that_would_come_again_is_not_retried(trainer: TrainerUnderTest) -> None:
    policy = RunPolicy(max_retries=10)
    created = await trainer.client.create_job(line_spec("preparing running nan"), policy=policy)
    job = await trainer.ended(created.name)
    assert (job.state, job.attempt) == (Job.STATE_FAILED, 1)
    assert job.error.message == "loss is nan"


@pytest.mark.parametrize("wish", ["pause_job", "cancel_job"])
async def test_a_job_that_waits_for_its_next_attempt_obeys_at_once(
    trainer: TrainerUnderTest, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    _restart_after(3600, monkeypatch)
    created = await trainer.client.create_job(
        line_spec("preparing running die_once exporting save finished"),
        policy=RunPolicy(max_retries=1),
    )
    await trainer.until_state(created.name, Job.STATE_RESTARTING)
    job = await getattr(trainer.client, wish)(created.name)
    if wish == "pause_job":
        assert job.state == Job.STATE_PAUSED
        await trainer.client.resume_job(created.name)
        assert (await trainer.ended(created.name)).state == Job.STATE_SUCCEEDED
    else:
        assert job.state == Job.STATE_CANCELLED


async def test_a_restart_of_the_trainer_does_not_lose_the_next_attempt(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _restart_after(3600, patch)
        async with house.trainer() as trainer:
            created = await trainer.client.create_job(
                line_spec("preparing running die_once exporting save finished"),
                policy=RunPolicy(max_retries=1),
            )
            await trainer.until_state(created.name, Job.STATE_RESTARTING)
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer() as trainer,
    ):
        assert (await trainer.ended(created.name)).state == Job.STATE_SUCCEEDED


def _restart_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_RESTART_SECONDS", seconds)
    monkeypatch.setattr(supervisor, "_MAX_RESTART_SECONDS", seconds)


# Clones


async def test_a_clone_of_an_ended_job_runs_on_its_own(
    house: House, trainer: TrainerUnderTest
) -> None:
    parent = await trainer.client.create_job(line_spec(), policy=RunPolicy(priority=7))
    await trainer.ended(parent.name)
    request_id = str(uuid.uuid4())
    clone = await trainer.client.clone_job(parent.name, request_id=request_id)
    again = await trainer.client.clone_job(parent.name, request_id=request_id.upper())
    assert again.name == clone.name != parent.name
    assert (clone.parent_job, clone.spec, clone.priority) == (parent.name, parent.spec, 7)
    assert (await trainer.ended(clone.name)).state == Job.STATE_SUCCEEDED
    assert len(house.registry.versions) == 2
    with pytest.raises(InvalidArgument, match="request_id"):
        await trainer.client.clone_job(parent.name, request_id="once")
    with pytest.raises(NotFound):
        await trainer.client.clone_job("trainingJobs/nobody")


async def test_the_command_line_clones_a_job(house: House, trainer: TrainerUnderTest) -> None:
    parent = await trainer.create()
    status, output = await cli(house, "jobs", "clone", parent.name)
    assert status == 0
    newest, _ = [job async for job in trainer.client.list_jobs()]
    assert f"submitted {newest.name}" in output
    _, output = await cli(house, "jobs", "show", newest.name)
    assert f"clone of {parent.name}" in output
    await trainer.ended(newest.name)
