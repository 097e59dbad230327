"""Job processes that live on though their jobs went to another trainer meanwhile.

They are what a trainer leaves that was killed and did not come back within its lease. Nobody
follows them, and what they write counts no more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Container
from pathlib import Path

import structlog

from modelrail.names import InvalidName, TrainingJobName
from modelrail_trainer.execution.process import JOB_DIRECTORY, JobProcess, identify
from modelrail_trainer.jobs.job import ProcessIdentity

_log = structlog.get_logger(__name__)


def job_processes(root: Path) -> list[tuple[TrainingJobName, ProcessIdentity]]:
    """Returns the processes of this user that work in a directory below `root`, with their jobs."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            pid = int(entry.name)
            # What a job started is in its session, and is ended with it.
            if entry.stat().st_uid != os.geteuid() or os.getsid(pid) != pid:
                continue
            words = (entry / "cmdline").read_text(errors="replace").split("\0")
            directory = Path(words[words.index(JOB_DIRECTORY) + 1])
            identity = identify(pid)
            if directory.parent == root and identity is not None:
                found.append((TrainingJobName(directory.name), identity))
        except (OSError, ValueError, IndexError, InvalidName):
            continue  # It has just ended, or is something else.
    return found


async def end_strays(
    processes: list[tuple[TrainingJobName, ProcessIdentity]],
    held: Container[TrainingJobName],
    *,
    grace_seconds: float,
) -> None:
    """Ends the processes whose jobs are not held by this trainer, and waits for that."""

    async def end(name: TrainingJobName, identity: ProcessIdentity) -> None:
        _log.warning("process of another trainer's job ended", job=str(name), pid=identity.pid)
        async with JobProcess(identity, None) as process:
            await process.stop(grace_seconds)

    await asyncio.gather(*(end(name, one) for name, one in processes if name not in held))
