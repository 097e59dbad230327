"""What a process that trains beside the first one of its job said before it gave up.

The journal is the first process's. The others are seldom the only ones to fail, and where they are
the first one learns no more than that they are gone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from modelrail_trainer.handover.job_file import NotAJobFileError, read_job_file
from modelrail_trainer.handover.journal import (
    MAX_LINE_BYTES,
    FailedEvent,
    FailureReason,
    JournalError,
    cut,
)
from modelrail_trainer.handover.record import as_record, member, text

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
        content = read_job_file(directory, LAST_WORD_NAME, most_bytes=MAX_LINE_BYTES)
    except FileNotFoundError:
        return None
    except NotAJobFileError as error:
        raise JournalError(f"the last word of a process cannot be read: {error}") from error
    try:
        record = as_record(json.loads(content), "last word")
        return FailedEvent(member(record, "reason", FailureReason), cut(text(record, "message")))
    # Includes broken JSON, broken UTF-8 and RecordError.
    except (ValueError, RecursionError) as error:
        raise JournalError(f"the last word of a process is none: {error}") from error
