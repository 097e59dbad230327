"""Jobs of several processes: real ones, started by torchrun, alone and under the service."""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf import json_format

from modelrail.client.errors import FailedPrecondition, InvalidArgument
from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.artifact import load_result
from modelrail_trainer.handover.journal import (
    FailedEvent,
    FailureReason,
    LogEvent,
    MetricsEvent,
)
from modelrail_trainer.handover.last_word import load_last_word
from tests.integration.house import (
    REAL_WORKER,
    House,
    ScriptedRegistry,
    TrainerUnderTest,
    processes_of,
    states,
)
from tests.integration.replica_jobs import SECONDS, digits, events_of, finished, log_of, start

Job = pb.TrainingJob


def losses(directory: Path) -> dict[tuple[int, str], float]:
    """The loss of each epoch, by part."""
    return {
        (metric.epoch, metric.split): metric.value
        for event in events_of(directory)
        if isinstance(event, MetricsEvent)
        for metric in event.metrics
        if metric.name == "loss" and metric.epoch
    }


def wait_for_checkpoint(directory: Path, step: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not (directory / "checkpoints" / f"step-{step:012d}.safetensors").exists():
        assert time.monotonic() < deadline, log_of(directory)
        time.sleep(0.005)


def kill_all(agent: subprocess.Popen[bytes], directory: Path) -> None:
    """Kills the agent alone; its processes have to go with it."""
    children = psutil.Process(agent.pid).children(recursive=True)
    assert len(children) >= 2
    agent.kill()
    agent.wait()
    _, alive = psutil.wait_procs(children, SECONDS)
    assert alive == []
    assert not (directory / "result.json").exists()  # they did not finish it either


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a job that two processes finished."""
    return finished(digits(), tmp_path_factory.mktemp("pair") / "job", 2)


def test_two_processes_make_the_steps_of_one(pair: Path, tmp_path: Path) -> None:
    alone = finished(digits(), tmp_path / "job", 1)
    assert losses(pair) == pytest.approx(losses(alone), rel=1e-3)
    assert len(losses(pair)) == 4
    said = [event.text for event in events_of(pair) if isinstance(event, LogEvent)]
    assert "2 processes train together, each on its part of every batch" in said
    steps = [
        [event.step for event in events_of(directory) if isinstance(event, MetricsEvent)]
        for directory in (pair, alone)
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_to_the_same_file(pair: Path, tmp_path: Path) -> None:
    directory = tmp_path / "job"
    agent = start(digits(), directory, 2)
    wait_for_checkpoint(directory, 14)
    kill_all(agent, directory)
    finished(digits(), directory, 2)
    assert load_result(directory).files == load_result(pair).files
    assert any(
        event.text.startswith("goes on from the checkpoint after step ")
        for event in events_of(directory)
        if isinstance(event, LogEvent)
    )


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_another_number_of_processes_goes_on_from_the_same_place(
    pair: Path, tmp_path: Path, before: int, after: int
) -> None:
    directory = tmp_path / "job"
    worker = start(digits(), directory, before)
    wait_for_checkpoint(directory, 14)
    if before > 1:
        kill_all(worker, directory)
    else:
        worker.kill()
        worker.wait()
    finished(digits(), directory, after)
    goes_on = [
        event.text
        for event in events_of(directory)
        if isinstance(event, LogEvent) and event.text.startswith("goes on from the checkpoint")
    ]
    assert len(goes_on) == 1
    assert losses(directory) == pytest.approx(losses(pair), rel=1e-3)


@pytest.mark.slow
def test_a_batch_of_fewer_rows_than_processes_counts_once(tmp_path: Path) -> None:
    spec = pb.TrainingJobSpec(
        dataset=pb.Dataset(line=pb.LineDataset(slope=2, intercept=1, points=21)),
        model=pb.ModelSpec(linear=pb.LinearModel()),
        loss=pb.Loss(mse=pb.MeanSquaredError()),
        optimizer=pb.Optimizer(sgd=pb.Sgd(learning_rate=0.05)),
        epochs=3,
        batch_size=1,
        publication=pb.Publication(model="line"),
    )
    together = finished(spec, tmp_path / "two", 2)
    assert losses(together) == pytest.approx(losses(finished(spec, tmp_path / "one", 1)), rel=1e-4)


@pytest.mark.slow
def test_rows_that_weigh_as_their_class_weigh_so_in_all_processes_together(tmp_path: Path) -> None:
    spec = digits(epochs=1)
    spec.batch_size = 17  # a share of it has hardly ever the classes of the other
    spec.loss.cross_entropy.class_weights.extend([1, 50, 1, 1, 20, 1, 1, 1, 1, 5])
    together = finished(spec, tmp_path / "two", 2)
    assert losses(together) == pytest.approx(losses(finished(spec, tmp_path / "one", 1)), rel=1e-3)


def test_a_dry_run_makes_one_step_in_all_processes(tmp_path: Path) -> None:
    directory = tmp_path / "job"
    status = start(digits(epochs=50), directory, 2, "--dry-run").wait(SECONDS)
    assert status == 0, log_of(directory)
    assert {e.step for e in events_of(directory) if isinstance(e, MetricsEvent)} == {1}
    assert load_result(directory).files


def failure_of(spec: pb.TrainingJobSpec, directory: Path) -> FailedEvent:
    """What a job of two processes failed of, whoever of them was the first to say it."""
    assert start(spec, directory, 2).wait(SECONDS) != 0
    last = events_of(directory)[-1]
    failure = last if isinstance(last, FailedEvent) else load_last_word(directory)
    assert failure is not None, log_of(directory)
    return failure


def test_a_loss_that_is_no_number_fails_all_processes_and_is_told_once(tmp_path: Path) -> None:
    spec = digits(epochs=50)
    spec.optimizer.sgd.learning_rate = 1e20
    failure = failure_of(spec, tmp_path / "job")
    assert failure.reason is FailureReason.NAN_LOSS
    assert [isinstance(e, FailedEvent) for e in events_of(tmp_path / "job")].count(True) <= 1


def test_data_that_the_first_process_cannot_use_ends_the_others(tmp_path: Path) -> None:
    spec = digits()
    spec.dataset.table.paths.append("rows.csv")
    spec.dataset.table.target = "kind"
    spec.model.mlp.hidden_units.append(4)
    spec.ClearField("preprocessing")
    (tmp_path / "rows.csv").write_text("x,kind\n1,a\n")
    assert failure_of(spec, tmp_path / "job").reason is FailureReason.DATA


OWN = """
import torch
from modelrail_trainer.user_code import CustomData


def rows(count):
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(1))
    return CustomData(inputs=x.numpy(), targets=(x[:, 0] > x[:, 1]).long().numpy())
"""
NET = """
import os
import signal

from torch import nn


def build(facts, width):
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, facts.outputs))


class Spare(nn.Linear):
    def __init__(self, facts):
        super().__init__(2, facts.outputs)
        self.unused = nn.Linear(2, 2)


def spare(facts, width):
    return Spare(facts)


def breaks(facts, width):
    raise ValueError("no such width")


class Uneven(nn.Linear):
    def __init__(self, facts, fault):
        super().__init__(2, facts.outputs)
        self.fault = fault

    def forward(self, rows):
        if self.training and os.environ["RANK"] == "1":
            match self.fault:
                case "raises":
                    raise ValueError("only in the second process")
                case "leaves":
                    os._exit(7)
        return super().forward(rows)


def kill(gradient):
    os.kill(os.getpid(), signal.SIGKILL)


def raises(facts, width):
    return Uneven(facts, "raises")


def leaves(facts, width):
    return Uneven(facts, "leaves")


def dies(facts, width):
    network = Uneven(facts, "")
    if os.environ["RANK"] == "1":
        network.bias.register_hook(kill)  # within a step back
    return network
"""


def of_ones_own(folder: Path, model: str = "net:build", **fields: Any) -> pb.TrainingJobSpec:
    # What makes the data is imported by the first process alone.
    (folder / "own.py").write_text(OWN)
    (folder / "net.py").write_text(NET)
    content = {
        "dataset": {"custom": {"entry_point": "own:rows", "arguments": {"count": 200}}},
        "model": {"custom": {"entry_point": model, "arguments": {"width": 4}}},
        "loss": {"cross_entropy": {}},
        "optimizer": {"adam": {"learning_rate": 0.01}},
        "epochs": 4,
        "checkpoint_every_steps": 2,
        "publication": {"model": "own"},
    }
    return json_format.ParseDict(content | fields, pb.TrainingJobSpec())


@pytest.mark.slow
def test_processes_train_a_model_of_ones_own_and_go_on_from_its_checkpoints(tmp_path: Path) -> None:
    spec = of_ones_own(tmp_path)
    alone = losses(finished(spec, tmp_path / "one", 1))
    together = finished(spec, tmp_path / "two", 2)
    assert losses(together) == pytest.approx(alone, rel=1e-4)
    (together / "events.jsonl").unlink()
    finished(spec, together, 2)
    told = [event.text for event in events_of(together) if isinstance(event, LogEvent)]
    assert any(text.startswith("goes on from the checkpoint after step") for text in told)
    assert not any(text.startswith("begins anew") for text in told)


def test_processes_train_a_model_that_does_not_use_all_its_parameters(tmp_path: Path) -> None:
    spec = of_ones_own(tmp_path, "net:spare", epochs=1)
    assert len(losses(finished(spec, tmp_path / "job", 2))) == 2


@pytest.mark.slow
def test_a_model_with_spare_parameters_learns_the_same_in_two_processes(tmp_path: Path) -> None:
    spec = of_ones_own(tmp_path, "net:spare")
    together = losses(finished(spec, tmp_path / "two", 2))
    assert together == pytest.approx(losses(finished(spec, tmp_path / "one", 1)), rel=1e-4)
    assert len(together) == 8


@pytest.mark.slow
def test_processes_import_a_model_together(tmp_path: Path) -> None:
    spec = of_ones_own(tmp_path, epochs=0)
    spec.ClearField("loss")
    spec.ClearField("optimizer")
    assert (finished(spec, tmp_path / "job", 2) / "result.json").exists()


def test_a_model_of_ones_own_that_fails_in_all_processes_is_told_once(tmp_path: Path) -> None:
    failure = failure_of(of_ones_own(tmp_path, "net:breaks"), tmp_path / "job")
    assert failure.reason is FailureReason.USER_CODE
    assert "no such width" in failure.message
    assert [isinstance(e, FailedEvent) for e in events_of(tmp_path / "job")].count(True) <= 1


# Under the service


def spend(process: psutil.Process) -> None:
    """Leaves a process that computes a second of CPU time."""
    used = process.cpu_times()
    limit = int(used.user + used.system) + 1
    resource.prlimit(process.pid, resource.RLIMIT_CPU, (limit, limit + 60))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, ScriptedRegistry(), REAL_WORKER)  # type: ignore[abstract]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder of user code."""
    folder = tmp_path / "code"
    folder.mkdir()
    return folder


@pytest.fixture
def long_job() -> pb.TrainingJobSpec:
    return digits(epochs=10_000)


async def until_trained(trainer: TrainerUnderTest, name: str) -> None:
    await trainer.until(name, lambda event: event.metric_report.progress.epoch > 0)


async def test_the_service_starts_the_processes_and_tells_which_wall_is_down(
    trainer: TrainerUnderTest,
) -> None:
    policy = RunPolicy(processes=2)
    created = await trainer.client.create_job(digits(), policy=policy)
    job = await trainer.ended(created.name)
    assert job.state == Job.STATE_SUCCEEDED, job.error
    assert job.processes == 2
    (network,) = [one for one in job.isolation if one.name == pb.IsolationLayer.NAME_NETWORK]
    assert (network.active, "TCP" in network.detail or "Landlock" in network.detail) == (
        False,
        True,
    )
    assert processes_of(trainer) == []


async def test_cancelling_ends_all_processes(
    trainer: TrainerUnderTest, long_job: pb.TrainingJobSpec
) -> None:
    created = await trainer.client.create_job(long_job, policy=RunPolicy(processes=2))
    await until_trained(trainer, created.name)
    assert len(processes_of(trainer)) == 4  # the guard, the agent, and two that train
    await trainer.client.cancel_job(created.name)
    assert (await trainer.ended(created.name)).state == Job.STATE_CANCELLED
    assert processes_of(trainer) == []


async def test_a_process_that_dies_takes_the_others_along_and_the_job_runs_again(
    trainer: TrainerUnderTest, long_job: pb.TrainingJobSpec
) -> None:
    policy = RunPolicy(processes=2, max_retries=1)
    created = await trainer.client.create_job(long_job, policy=policy)
    await until_trained(trainer, created.name)
    youngest = max(map(psutil.Process, processes_of(trainer)), key=psutil.Process.create_time)
    youngest.send_signal(signal.SIGKILL)
    await trainer.until_state(created.name, Job.STATE_RESTARTING)
    job = await trainer.client.get_job(created.name)
    assert job.error.reason == pb.JobError.REASON_PROCESS_DIED
    await trainer.until_line(created.name, "goes on from the checkpoint after step ")
    await trainer.client.cancel_job(created.name)
    await trainer.events(created.name)


async def test_what_a_model_of_ones_own_raises_in_another_process_is_its_own_fault(
    house: House, code: Path
) -> None:
    spec = of_ones_own(code, "net:raises")
    async with house.trainer(user_code=(str(code),)) as trainer:
        policy = RunPolicy(processes=2, max_retries=1)
        job = await trainer.ended((await trainer.client.create_job(spec, policy=policy)).name)
    assert (job.state, job.attempt) == (Job.STATE_FAILED, 1)
    assert job.error.reason == pb.JobError.REASON_USER_CODE
    assert "ValueError: only in the second process\n  File 'net.py', line " in job.error.message


async def test_an_end_of_another_process_by_ones_own_model_fails_a_dry_run_as_its_own_fault(
    house: House, code: Path
) -> None:
    spec = of_ones_own(code, "net:leaves")
    async with house.trainer(user_code=(str(code),)) as trainer:
        client = trainer.client.with_timeout(SECONDS)
        with pytest.raises(FailedPrecondition, match=r"os\._exit\(7\)[^F]*File 'net.py'") as raised:
            await client.create_job(spec, policy=RunPolicy(processes=2), dry_run=True)
    assert raised.value.metadata["failure"] == "USER_CODE"


async def test_a_process_that_dies_beside_a_model_of_ones_own_is_not_the_models_fault(
    house: House, code: Path
) -> None:
    spec = of_ones_own(code, "net:dies")
    async with house.trainer(user_code=(str(code),)) as trainer:
        created = await trainer.client.create_job(spec, policy=RunPolicy(processes=2))
        job = await trainer.ended(created.name)
    assert job.state == Job.STATE_FAILED
    assert job.error.reason == pb.JobError.REASON_PROCESS_DIED, job.error.message


async def test_the_cpu_time_of_one_process_that_is_up_is_told_as_that(
    house: House, long_job: pb.TrainingJobSpec
) -> None:
    async with house.trainer(max_job_cpu_seconds=3600) as trainer:
        created = await trainer.client.create_job(long_job, policy=RunPolicy(processes=2))
        await until_trained(trainer, created.name)
        youngest = max(map(psutil.Process, processes_of(trainer)), key=psutil.Process.create_time)
        spend(youngest)
        job = await trainer.ended(created.name)
    assert (job.state, job.error.reason) == (Job.STATE_FAILED, pb.JobError.REASON_TIMEOUT)
    assert "--max-job-cpu-seconds" in job.error.message


async def test_a_paused_job_goes_on_with_another_number_of_processes(
    trainer: TrainerUnderTest, long_job: pb.TrainingJobSpec
) -> None:
    created = await trainer.client.create_job(long_job, policy=RunPolicy(processes=2))
    await until_trained(trainer, created.name)
    await trainer.client.pause_job(created.name)
    await trainer.until_state(created.name, Job.STATE_PAUSED)
    assert processes_of(trainer) == []
    resumed = await trainer.client.resume_job(created.name, processes=1)
    assert resumed.processes == 1
    await trainer.until_line(created.name, "goes on from the checkpoint after step ")
    assert len(processes_of(trainer)) == 2  # the guard, and one that trains
    await trainer.client.cancel_job(created.name)
    assert "PAUSED" in states(await trainer.events(created.name))


@pytest.mark.parametrize("processes", [-1, 65])
async def test_a_number_of_processes_that_cannot_be_is_refused_by_name(
    trainer: TrainerUnderTest, processes: int
) -> None:
    policy = RunPolicy(processes=processes)
    with pytest.raises(InvalidArgument) as raised:
        await trainer.client.create_job(digits(), policy=policy)
    assert [violation.field for violation in raised.value.violations] == ["training_job.processes"]
    created = await trainer.client.create_job(digits(epochs=1))
    with pytest.raises(InvalidArgument, match="processes"):
        await trainer.client.resume_job(created.name, processes=processes)
    await trainer.client.cancel_job(created.name)
    async with asyncio.timeout(SECONDS):
        await trainer.events(created.name)
