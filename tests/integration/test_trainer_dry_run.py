"""Dry runs: through the service with scripted workers, and one step of real workers."""

from __future__ import annotations

import asyncio
import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format

import modelrail
from modelrail.client.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.execution.errands import errand
from modelrail_trainer.handover.artifact import load_result, verify_files
from modelrail_trainer.handover.journal import LogEvent, MetricsEvent, read_events
from tests.integration.house import (
    SUCCESS,
    House,
    ScriptedRegistry,
    TrainerUnderTest,
    cli,
    line_spec,
    processes_of,
)

EXAMPLES = Path(modelrail.__file__).parent / "examples"
NAN = "preparing running nan"
SECONDS = 120.0


async def jobs_of(trainer: TrainerUnderTest) -> list[pb.TrainingJob]:
    return [job async for job in trainer.client.list_jobs()]


def left_by_dry_runs(trainer: TrainerUnderTest) -> list[Path]:
    return list((trainer.data_dir / "dry-runs").iterdir())


async def until_a_process_waits(trainer: TrainerUnderTest) -> None:
    """Returns when the worker of a dry run has said that it waits."""
    async with asyncio.timeout(30):
        while not any(  # noqa: ASYNC110  # only the file tells
            "waiting" in path.read_text()
            for path in (trainer.data_dir / "dry-runs").glob("*/events.jsonl")
        ):
            await asyncio.sleep(0.01)


async def until_no_process_is_left(trainer: TrainerUnderTest) -> None:
    async with asyncio.timeout(30):
        while processes_of(trainer) or left_by_dry_runs(trainer):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)


# What a client gets


async def test_a_job_whose_dry_run_passes_is_queued(trainer: TrainerUnderTest) -> None:
    created = await trainer.client.create_job(line_spec(), dry_run=True)
    assert created.state == pb.TrainingJob.STATE_QUEUED
    assert (await trainer.ended(created.name)).state == pb.TrainingJob.STATE_SUCCEEDED
    assert left_by_dry_runs(trainer) == []


async def test_of_a_job_whose_dry_run_fails_nothing_is_queued(trainer: TrainerUnderTest) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        await trainer.client.create_job(line_spec(NAN), dry_run=True)
    assert str(raised.value) == "the dry run failed: NAN_LOSS: loss is nan"
    assert raised.value.reason == "DRY_RUN_FAILED"
    assert raised.value.metadata["failure"] == "NAN_LOSS"
    assert await jobs_of(trainer) == []
    assert left_by_dry_runs(trainer) == []


async def test_a_process_that_dies_fails_its_dry_run_and_shows_its_log(
    trainer: TrainerUnderTest,
) -> None:
    with pytest.raises(FailedPrecondition, match="the roof is on fire") as raised:
        await trainer.client.create_job(line_spec("preparing crash"), dry_run=True)
    assert raised.value.metadata["failure"] == "PROCESS_DIED"
    assert str(trainer.data_dir) not in str(raised.value)
    # There is no job yet.
    assert "before there was a result; try again" in str(raised.value)


async def test_a_result_that_is_not_what_was_written_fails_the_dry_run(
    trainer: TrainerUnderTest,
) -> None:
    script = "preparing running exporting save tamper finished"
    with pytest.raises(FailedPrecondition, match="damaged"):
        await trainer.client.create_job(line_spec(script), dry_run=True)


async def test_validation_alone_queues_nothing(trainer: TrainerUnderTest) -> None:
    answer = await trainer.client.create_job(line_spec(), validate_only=True)
    assert (answer.name, answer.spec) == ("", line_spec())
    await trainer.client.create_job(line_spec(), validate_only=True, dry_run=True)
    assert await jobs_of(trainer) == []
    wrong = line_spec()
    wrong.epochs = 0
    with pytest.raises(InvalidArgument):
        await trainer.client.create_job(wrong, validate_only=True)


async def test_a_repeated_request_gets_its_job_without_another_dry_run(
    trainer: TrainerUnderTest,
) -> None:
    request_id = "5a0e8a76-7f0c-4f5e-9d27-3d7c4a6d8a11"
    first = await trainer.client.create_job(line_spec(NAN), request_id=request_id)
    again = await trainer.client.create_job(line_spec(NAN), request_id=request_id, dry_run=True)
    assert again.name == first.name


# Limits


async def test_a_dry_run_that_takes_too_long_is_stopped_and_says_so(house: House) -> None:
    async with house.trainer(dry_run_seconds=1) as trainer:
        with pytest.raises(FailedPrecondition, match="no result after 1 s") as raised:
            await trainer.client.create_job(line_spec("preparing stubborn wait"), dry_run=True)
        assert raised.value.metadata["failure"] == "TIMEOUT"
        assert processes_of(trainer) == []
        assert left_by_dry_runs(trainer) == []


async def test_a_client_that_gives_up_ends_its_dry_run(trainer: TrainerUnderTest) -> None:
    call = asyncio.create_task(
        trainer.client.create_job(line_spec("preparing stubborn wait"), dry_run=True)
    )
    await until_a_process_waits(trainer)
    assert processes_of(trainer) != []
    call.cancel()
    await until_no_process_is_left(trainer)
    assert await jobs_of(trainer) == []
    # The place is free again.
    await trainer.client.create_job(line_spec(), dry_run=True, validate_only=True)


COUNTING_WORKER = """
import os, sys
from pathlib import Path
from modelrail_trainer.handover import journal

directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
if os.environ.get("RANK", "0") == "0":
    with journal.JournalWriter(directory / "events.jsonl") as log:
        count = os.environ.get("WORLD_SIZE", "1")
        log.write(journal.FailedEvent(journal.FailureReason.DATA, f"there are {count} of us"))
"""


async def test_a_dry_run_has_the_processes_of_its_job(tmp_path: Path) -> None:
    house = House(tmp_path, ScriptedRegistry(), COUNTING_WORKER)  # type: ignore[abstract]
    async with house.trainer() as trainer:
        for processes in (1, 2):
            policy = RunPolicy(processes=processes)
            with pytest.raises(FailedPrecondition, match=f"there are {processes} of us"):
                await trainer.client.create_job(line_spec(), policy=policy, dry_run=True)


async def test_only_so_many_callers_may_wait(
    trainer: TrainerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errand, "MAX_WAITING", 0)
    call = asyncio.create_task(trainer.client.create_job(line_spec("preparing wait"), dry_run=True))
    await until_a_process_waits(trainer)
    with pytest.raises(ResourceExhausted, match="one dry run is under way and 0 wait"):
        await trainer.client.create_job(line_spec(), dry_run=True)
    call.cancel()
    await until_no_process_is_left(trainer)


async def test_what_a_dry_run_left_when_the_trainer_died_is_removed(house: House) -> None:
    async with house.trainer() as trainer:
        left = trainer.data_dir / "dry-runs" / "dry-run-1"
        left.mkdir()
    async with house.trainer() as trainer:
        assert left_by_dry_runs(trainer) == []


async def test_the_command_line_tries_a_job_and_queues_nothing(
    house: House, trainer: TrainerUnderTest
) -> None:
    content = json_format.MessageToDict(line_spec(), preserving_proto_field_name=True)
    file = house.tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(content))
    status, output = await cli(house, "train", str(file), "--dry-run")
    assert (status, "the dry run passed" in output) == (0, True), output
    content["display_name"] = NAN
    file.write_text(yaml.safe_dump(content))
    for flag in ("--dry-run", "--dry-run-first"):
        status, output = await cli(house, "train", str(file), flag)
        assert (status, "the dry run failed: NAN_LOSS: loss is nan" in output) == (1, True), output
    assert await jobs_of(trainer) == []
    content["display_name"] = SUCCESS
    file.write_text(yaml.safe_dump(content))
    status, output = await cli(house, "train", str(file), "--dry-run-first", "--detach")
    assert status == 0, output
    assert len(await jobs_of(trainer)) == 1


# One step of a real worker


def dry_run_of(spec: pb.TrainingJobSpec, tmp_path: Path) -> tuple[int, Path]:
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    command = [sys.executable, "-W", "error", "-m", "modelrail_trainer.worker", "--dry-run"]
    finished = subprocess.run(
        [*command, f"--data-root={tmp_path}", "--job-directory", str(directory)],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    (tmp_path / "worker.log").write_text(finished.stdout + finished.stderr)
    return finished.returncode, directory


def example(name: str) -> pb.TrainingJobSpec:
    content = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return json_format.ParseDict(content, pb.TrainingJobSpec())


@pytest.mark.parametrize("name", ["linear", "digits"])
def test_one_step_is_trained_exported_and_proven(name: str, tmp_path: Path) -> None:
    spec = example(name)
    status, directory = dry_run_of(spec, tmp_path)
    assert status == 0, (tmp_path / "worker.log").read_text()
    events, _ = read_events(directory / "events.jsonl", 0)
    assert {event.step for event in events if isinstance(event, MetricsEvent)} == {1}
    result = load_result(directory)
    verify_files(result, directory)
    assert {metric.runtime for metric in result.metrics} == {"pytorch", "onnxruntime"}


def test_of_a_large_sorted_table_a_sample_with_every_class_is_read(tmp_path: Path) -> None:
    # Three classes one after the other; the sample leaves out the training rows of the last.
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["x", "kind"])
        rows.writerows([i, "first"] for i in range(20_000))
        rows.writerows([i, "second"] for i in range(20_000))
        rows.writerows([1, "last"] for _ in range(3))
    spec = example("digits")
    spec.ClearField("preprocessing")
    spec.dataset.table.paths.append("rows.csv")
    spec.dataset.table.target = "kind"
    spec.model.mlp.hidden_units.append(4)
    spec.loss.cross_entropy.class_weights.extend([1, 2, 3])
    status, directory = dry_run_of(spec, tmp_path)
    assert status == 0, (tmp_path / "worker.log").read_text()
    (labels,) = [o.labels for o in load_result(directory).signature.outputs if o.name == "logits"]
    assert labels == ("first", "last", "second")
    events, _ = read_events(directory / "events.jsonl", 0)
    (data,) = [e.text for e in events if isinstance(e, LogEvent) and e.text.startswith("data set")]
    counts = data.partition(": ")[2].replace(",", "").split()
    # Every fourth row would be 10,001 rows, which is one too many: every fifth it is.
    assert sum(int(word) for word in counts if word.isdigit()) == 8_001


@pytest.mark.parametrize("batch_size", [1, 32])
def test_of_a_sorted_table_each_part_of_the_one_batch_has_both_classes(
    batch_size: int, tmp_path: Path
) -> None:
    # Few of the second class, so that rows at even distances may miss it too.
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["x", "kind"])
        rows.writerows([i, "yes" if 900 <= i < 930 else "no"] for i in range(2_000))
    spec = example("digits")
    spec.ClearField("preprocessing")
    spec.batch_size = batch_size
    spec.dataset.table.paths.append("rows.csv")
    spec.dataset.table.target = "kind"
    spec.model.mlp.hidden_units.append(4)
    spec.selection.metric = "roc_auc"
    status, directory = dry_run_of(spec, tmp_path)
    assert status == 0, (tmp_path / "worker.log").read_text()
    figures = {(metric.split, metric.name) for metric in load_result(directory).metrics}
    assert {("validation", "roc_auc"), ("test", "roc_auc")} <= figures
