"""Looks into tables, by a process of their own: the service never parses files of anybody."""

from __future__ import annotations

from pathlib import Path

from modelrail_server.errors import FailedPrecondition, FieldViolation
from modelrail_trainer.execution.errands.errand import DamagedResult, Errands
from modelrail_trainer.handover.inspection import Inspection, InspectionError, load_inspection
from modelrail_trainer.jobs.job import JobError
from modelrail_trainer.jobs.state import Reason


class Inspections:
    """Carries out inspections.

    Args:
        errands: Runs their processes.
    """

    def __init__(self, errands: Errands) -> None:
        self._errands = errands

    async def run(self, specification: bytes, files: int, rows: int) -> Inspection:
        """Returns what the table of a specification holds. Cancelling ends the process.

        Args:
            specification: One with nothing but a data set and a split.
            files: Number of files that it names.
            rows: Rows to show.

        Raises:
            FailedPrecondition: The files cannot be read, or hold no table; the message says which.
            ResourceExhausted: Too many callers wait.
            Unavailable: The service stops, or its machine cannot do it now.
        """

        def found(directory: Path) -> Inspection | None:
            try:
                inspection = load_inspection(directory)
            except InspectionError as error:
                raise DamagedResult(str(error)) from error
            if inspection is not None and (
                len(inspection.files) != files or len(inspection.preview) > rows
            ):
                raise DamagedResult("it is about other files or rows")
            return inspection

        result = await self._errands.run(specification, [f"--inspect={rows}"], found)
        if isinstance(result, Inspection):
            return result
        raise _failure(result, self._errands.limit_seconds)


def _failure(error: JobError | None, limit_seconds: float) -> FailedPrecondition:
    if error is None:
        raise ValueError("an errand ends with a result or an error")
    field, _, told = error.message.partition(": ")
    if error.reason is Reason.DATA and field.startswith(("dataset", "split")):
        return FailedPrecondition(
            f"the table cannot be inspected: {error.message}",
            reason="INSPECTION_FAILED",
            violations=[FieldViolation(field, told)],
            failure=str(error.reason),
            field=field,
        )
    message = error.message
    if error.reason is Reason.TIMEOUT and not message:
        message = (
            f"it had no result after {limit_seconds:g} s; name fewer files or columns, or have the "
            "trainer's --inspection-seconds raised"
        )
    return FailedPrecondition(
        f"the table cannot be inspected: {error.reason}: {message}",
        reason="INSPECTION_FAILED",
        failure=str(error.reason),
    )
