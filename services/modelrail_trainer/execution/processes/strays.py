"""Executions that live on though their jobs went to another trainer meanwhile, or their callers.

They are what a trainer leaves that was killed and did not come back within its lease, and its
errands, whenever it comes back. Nobody follows them, and what they write counts no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence

import structlog

from modelrail.names import TrainingJobName
from modelrail_trainer.execution.processes.executor import Execution

_log = structlog.get_logger(__name__)


async def end_strays(
    executions: Sequence[tuple[TrainingJobName, Execution]],
    held: Container[TrainingJobName],
    *,
    grace_seconds: float,
) -> None:
    """Ends the executions whose jobs are not held by this trainer, and waits for that."""

    async def end(name: TrainingJobName, stray: Execution) -> None:
        _log.warning("process that nobody follows ended", job=str(name), process=stray.handle)
        async with stray:
            await stray.stop(grace_seconds)

    await asyncio.gather(*(end(name, one) for name, one in executions if name not in held))
