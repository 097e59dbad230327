"""What the processes of a job print, as lines of its log: bounded, and fit for a terminal.

Standard output and standard error go into a file that the job writes without waiting for anyone.
The trainer follows it as it follows the journal, with a position that is stored beside the lines.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from modelrail_trainer.failure.redaction import without_directories
from modelrail_trainer.failure.trace import OPERATOR_MARK
from modelrail_trainer.handover.job_file import NotAJobFileError, open_job_file
from modelrail_trainer.handover.journal import MAX_TEXT_BYTES, cut
from modelrail_trainer.jobs.job import OutputMark

MOST_BYTES = 1 << 20
"""What the lines of a job may take in all, its attempts together."""
LINE_BYTES = 64
"""What a line takes beside its text. So there are at most 16,384 of them."""
_READ_BYTES = 64 << 10
_LINES_AT_ONCE = 200
_SKIPPED = (
    f"the processes of the job printed more than the {MOST_BYTES} bytes that its log keeps; "
    "what they print from here on is left out"
)
# Colours, and whatever else moves the cursor or talks to a terminal (ECMA-48).
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
# Other control characters, and those that turn the direction of a text or begin another line.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def read_output(path: Path, mark: OutputMark, *, ended: bool) -> tuple[list[str], OutputMark]:
    """Returns the lines that were printed after a position, and the position after them.

    A line without an end waits until it has one, or the process has ended. Of a flood some lines
    come at once, and the next ones with the next call.

    Args:
        path: What was printed, a file; nothing where there is none.
        mark: The position, as it was returned before.
        ended: Whether nothing more will be printed.
    """
    if mark.spent_bytes >= MOST_BYTES:
        return [], mark
    data = _read(path, mark.offset)
    lines: list[str] = []
    position, spent = 0, mark.spent_bytes
    while position < len(data) and len(lines) < _LINES_AT_ONCE:
        end = data.find(b"\n", position)
        if end < 0:
            is_last = ended and len(data) < _READ_BYTES
            if not is_last and (position or len(data) < _READ_BYTES):
                break
            end = len(data)
        line = _line(data[position:end])
        position = min(end + 1, len(data))
        spent += LINE_BYTES + len(line.encode())
        if spent >= MOST_BYTES:
            lines.append(_SKIPPED)
            spent = MOST_BYTES
            break
        if line:
            lines.append(line)
    return lines, OutputMark(mark.offset + position, spent)


def printable(text: str) -> str:
    """Returns a text without what would move a terminal's cursor; lines and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def _line(content: bytes) -> str:
    """Returns a line as a terminal would show it in the end, without paths of the machine."""
    if content.startswith(OPERATOR_MARK.encode()):
        return ""
    # A bar that is drawn again and again is drawn over, each time from the line's beginning.
    drawn = content.rstrip(b"\r").rpartition(b"\r")[2]
    text = drawn[: 4 * MAX_TEXT_BYTES].decode(errors="replace")
    return cut(without_directories(printable(text)).rstrip())


def _read(path: Path, offset: int) -> bytes:
    # The job may have put something else in the file's place.
    try:
        with open_job_file(path.parent, path.name) as output:
            return os.pread(output.fileno(), _READ_BYTES, offset)
    except (FileNotFoundError, NotAJobFileError):
        return b""
