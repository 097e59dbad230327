"""What a process that trains beside the first one of its job said before it gave up.

The journal is the first process's. The others are seldom the only ones to fail, and where they are
the first one learns no more than that they are gone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from modelrail_trainer.handover.job_file import NotAJobFileError, read_job_record
from modelrail_trainer.handover.journal import (
    MAX_LINE_BYTES,
    FailedEvent,
    FailureReason,
    JournalError,
    cut,
)
from modelrail_trainer.handover.record import Record, member, text

LAST_WORD_NAME = "last_word.json"


def save_last_word(failure: FailedEvent, directory: Path) -> None:
    """Writes why this process gives up, whole or not at all; of several the last one counts.

    Raises:
        OSError: The disk is full.
    """
    partial = directory / f"{LAST_WORD_NAME}.{os.getpid()}.partial"
    said = {"reason": failure.reason.value, "message": cut(failure.message)}
    partial.write_bytes(json.dumps(said, ensure_ascii=False).encode("utf-8", "replace"))
    partial.replace(directory / LAST_WORD_NAME)


def load_last_word(directory: Path) -> FailedEvent | None:
    """Reads why a process beside the first gave up; None where none said so.

    Raises:
        JournalError: What is there tells of no failure.
        OSError: The machine cannot read it now.
    """
    try:
        return read_job_record(
            directory,
            LAST_WORD_NAME,
            _failure,
            what="last word of a process",
            most_bytes=MAX_LINE_BYTES,
        )
    except NotAJobFileError as error:
        raise JournalError(str(error)) from error


def _failure(record: Record) -> FailedEvent:
    return FailedEvent(member(record, "reason", FailureReason), cut(text(record, "message")))
