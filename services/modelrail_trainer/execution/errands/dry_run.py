"""Dry runs: one batch through the whole path, before anybody waits for a place.

A dry run reads some of the rows, trains one step, evaluates, exports and passes the gate, and
publishes nothing.
"""

from __future__ import annotations

from pathlib import Path

from modelrail_server.errors import FailedPrecondition
from modelrail_trainer.execution.errands.errand import DamagedResult, Errands
from modelrail_trainer.handover.artifact import ArtifactError, has_result, load_result, verify_files
from modelrail_trainer.jobs.job import JobError
from modelrail_trainer.jobs.state import Reason


class DryRuns:
    """Carries out dry runs.

    Args:
        errands: Runs their processes.
    """

    def __init__(self, errands: Errands) -> None:
        self._errands = errands

    async def run(self, specification: bytes, processes: int) -> None:
        """Returns when the dry run of a specification has passed. Cancelling ends its process.

        Args:
            specification: What is tried.
            processes: How many train together, as in the job.

        Raises:
            FailedPrecondition: It failed, and so would the job; the message says of what.
            ResourceExhausted: Too many callers wait.
            Unavailable: The service stops, or its machine cannot do it now.
        """
        error = await self._errands.run(
            specification, ["--dry-run"], _verified, processes=processes
        )
        if not isinstance(error, JobError):
            return
        message = error.message
        if error.reason is Reason.TIMEOUT and not message:
            message = (
                f"it had no result after {self._errands.limit_seconds:g} s; ask for a smaller "
                "model or batch, or have the trainer's --dry-run-seconds raised"
            )
        raise FailedPrecondition(
            f"the dry run failed: {error.reason}: {message}",
            reason="DRY_RUN_FAILED",
            failure=str(error.reason),
        )


def _verified(directory: Path) -> bool | None:
    if not has_result(directory):
        return None
    try:
        verify_files(load_result(directory), directory)
    except ArtifactError as error:
        raise DamagedResult(str(error)) from error
    return True
