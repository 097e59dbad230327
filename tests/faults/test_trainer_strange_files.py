"""A job that leaves what nobody can read or send on: only the job fails, and tells of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.scripted import scripted_trainer

Job = pb.TrainingJob
# Generous: without the guard nothing ever comes.
IN_TIME_SECONDS = 60.0

# What the job does is its display name. Some stay until they are stopped, and ignore a request.
WORKER = """
import json, os, signal, sys
from pathlib import Path
from modelrail.trainer.v1 import trainer_pb2
from modelrail_trainer.handover import journal

directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
fault = trainer_pb2.TrainingJobSpec.FromString((directory / "spec.binpb").read_bytes()).display_name
METRIC = {"name": "loss", "value": 0.5, "split": "test", "epoch": 0, "runtime": "pytorch"}
REPORT = {"kind": "metrics", "epoch": 1, "epochs": 2, "step": 3, "rows_per_second": 4.5}


def tell(**fields):
    # As code of the job's owner may: past the writer, which would refuse some of it.
    with (directory / "events.jsonl").open("a") as file:
        file.write(json.dumps({**REPORT, "metrics": [], **fields}) + "\\n")


def leave(**metric):
    result = {
        "files": [],
        "signature": {"inputs": [], "outputs": []},
        "metrics": [METRIC | metric],
        "lineage": {
            "dataset": "d", "dataset_sha256": "", "spec_sha256": "", "seed": 1, "packages": {}
        },
        "certificate": {
            "opset": 20, "absolute_tolerance": 0, "relative_tolerance": 0, "batch_sizes": [],
            "outputs": [], "rows": 1, "tools": {}, "attempts": [],
        },
    }
    (directory / "result.json").write_text(json.dumps(result))
    log.write(journal.PhaseEvent(journal.Phase.EXPORTING))
    log.write(journal.FinishedEvent())


with journal.JournalWriter(directory / "events.jsonl") as log:
    log.write(journal.PhaseEvent(journal.Phase.PREPARING))
    log.write(journal.PhaseEvent(journal.Phase.RUNNING))
    match fault:
        case "pipe for a journal":
            (directory / "events.jsonl").unlink()
            os.mkfifo(directory / "events.jsonl")
            signal.pause()
        case "pipe for a log":
            (directory / "worker.log").unlink()
            os.mkfifo(directory / "worker.log")
            sys.exit(1)
        case "pipe for a pulse":
            (directory / "pulse").unlink(missing_ok=True)
            os.mkfifo(directory / "pulse")
            sys.exit(1)
        case "pipe for a result":
            os.mkfifo(directory / "result.json")
            log.write(journal.FinishedEvent())
        case "link for a result":
            (directory / "result.json").symlink_to("/etc/passwd")
            log.write(journal.FinishedEvent())
        case "broken result":
            (directory / "result.json").write_text("{}")
            log.write(journal.FinishedEvent())
        case "epoch beyond 32 bits":
            tell(epoch=2**40)
        case "epochs beyond 32 bits":
            tell(epochs=2**40)
        case "step below nothing":
            tell(step=-1)
        case "end before all times":
            tell(eta_seconds=-1e300)
        case "end after all times":
            tell(eta_seconds=1e300)
        case "speed beyond all numbers":
            tell(rows_per_second=10**400)
        case "metric of an epoch beyond 32 bits":
            tell(metrics=[METRIC | {"epoch": 2**40}])
        case "metric with half a character":
            tell(metrics=[METRIC | {"name": "\\ud800"}])
        case "final metric of an epoch beyond 32 bits":
            leave(epoch=2**40)
        case "final metric with half a character":
            leave(name="\\ud800")
"""


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("pipe for a journal", "the journal cannot be read"),
        ("pipe for a log", "exit code 1"),
        ("pipe for a pulse", "exit code 1"),
        ("pipe for a result", "before there was a result"),
        ("link for a result", "before there was a result"),
        ("broken result", "what its process left is damaged: the result is malformed"),
    ],
)
async def test_only_the_job_fails_that_puts_something_else_where_the_service_reads(
    behaviour: str, said: str, tmp_path: Path
) -> None:
    async with asyncio.timeout(2 * IN_TIME_SECONDS), scripted_trainer(tmp_path, WORKER) as served:
        job = await served.run(behaviour)
        assert job.state == Job.STATE_FAILED
        assert said in job.error.message
        assert str(tmp_path) not in job.error.message
        following = await served.run("pipe for a log")  # its place is free
        assert following.state == Job.STATE_FAILED


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (
            "epoch beyond 32 bits",
            "epoch: expected a number from 0 to 2147483647, got 1099",
        ),
        ("epochs beyond 32 bits", "epochs: expected a number from 0 to 2147483647"),
        ("step below nothing", "step: expected a number from 0 to 9223372036854775807, got -1"),
        ("end before all times", "eta_seconds: expected a number from 0 to"),
        ("end after all times", "eta_seconds: expected a number from 0 to"),
        ("speed beyond all numbers", "rows_per_second: expected a finite number"),
        ("metric of an epoch beyond 32 bits", "epoch: expected a number from 0 to 2147483647"),
        ("metric with half a character", "name: expected a text of whole characters"),
        (
            "final metric of an epoch beyond 32 bits",
            "epoch: expected a number from 0 to 2147483647",
        ),
        ("final metric with half a character", "name: expected a text of whole characters"),
    ],
)
async def test_a_job_that_tells_what_no_message_holds_is_listed_with_the_others(
    behaviour: str, said: str, tmp_path: Path
) -> None:
    async with asyncio.timeout(IN_TIME_SECONDS), scripted_trainer(tmp_path, WORKER) as served:
        job = await served.run(behaviour)  # watches it to its end
        assert job.state == Job.STATE_FAILED
        assert "what its process left is damaged" in job.error.message
        assert said in job.error.message
        assert [listed.name async for listed in served.client.list_jobs()] == [job.name]
