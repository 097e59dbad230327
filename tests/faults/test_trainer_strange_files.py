"""A job that puts links and pipes where the service reads: only the job fails, and tells of it."""

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
import os, signal, sys
from pathlib import Path
from modelrail.trainer.v1 import trainer_pb2
from modelrail_trainer.handover import journal

directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
fault = trainer_pb2.TrainingJobSpec.FromString((directory / "spec.binpb").read_bytes()).display_name
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
