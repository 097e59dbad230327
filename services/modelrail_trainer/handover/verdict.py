"""What a second look at a job's files found, written by the process that looked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from modelrail_trainer.handover.artifact import OutputParity
from modelrail_trainer.handover.job_file import NotAJobFileError, read_job_record
from modelrail_trainer.handover.record import Record, count, items, real, text

VERDICT_NAME = "verdict.json"
_MAX_BYTES = 1 << 20


class VerdictError(ValueError):
    """What is there is no verdict."""


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file that was looked at.

    Attributes:
        path: As the result names it.
        sha256: Of the bytes that were looked at.
    """

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The files are what the result says that they are.

    Attributes:
        files: All of the result.
        outputs: The worst difference from the reference, by output.
        rows: Reference rows that were compared, over all graphs.
    """

    files: tuple[SeenFile, ...]
    outputs: tuple[OutputParity, ...]
    rows: int


def save_verdict(verdict: Verdict, directory: Path) -> None:
    """Writes the verdict, whole or not at all."""
    partial = directory / (VERDICT_NAME + ".partial")
    partial.write_text(json.dumps(asdict(verdict), allow_nan=False), encoding="utf-8")
    partial.replace(directory / VERDICT_NAME)


def load_verdict(directory: Path) -> Verdict | None:
    """Reads the verdict; None where there is none.

    Raises:
        VerdictError: It is something else.
    """
    try:
        return read_job_record(
            directory, VERDICT_NAME, _verdict, what="verdict", most_bytes=_MAX_BYTES
        )
    except NotAJobFileError as error:
        raise VerdictError(str(error)) from error


def _verdict(record: Record) -> Verdict:
    return Verdict(
        files=items(record, "files", _file),
        outputs=items(record, "outputs", _output),
        rows=count(record, "rows"),
    )


def _file(record: Record) -> SeenFile:
    return SeenFile(text(record, "path"), text(record, "sha256"))


def _output(record: Record) -> OutputParity:
    return OutputParity(text(record, "name"), real(record, "max_absolute_difference"))
