"""Traces of exceptions, for whoever reads of a failure and has no access to the machine."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

from modelrail_trainer.failure.redaction import without_directories

OPERATOR_MARK = "\x1e"
"""Begins the lines of a process's log that are for the operator, and no part of the job's log."""
_MAX_FRAMES = 12
_MAX_CAUSES = 3
_MAX_MESSAGE_CHARACTERS = 1500


def told(error: BaseException) -> str:
    """Returns an exception, what it came of, and the way there: modules, lines and functions.

    Neither the paths of the machine nor the source are in it.
    """
    found: list[BaseException] = []
    present: BaseException | None = error
    while present is not None and present not in found and len(found) < _MAX_CAUSES:
        found.append(present)
        context = None if present.__suppress_context__ else present.__context__
        present = present.__cause__ or context
    return "\ncame of ".join(_said(one) + _way(one.__traceback__) for one in found)


def show_to_operator() -> None:
    """Writes the exception that is being handled, with paths and source, to the process's log."""
    for line in traceback.format_exc().splitlines():
        print(f"{OPERATOR_MARK}{line}", file=sys.stderr)


def _said(error: BaseException) -> str:
    try:
        said = without_directories(" ".join(str(error).split()))[:_MAX_MESSAGE_CHARACTERS]
    except Exception:  # noqa: BLE001  # an exception of another's making
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _way(trace: TracebackType | None) -> str:
    lines = []
    for frame, line in traceback.walk_tb(trace):
        spec = frame.f_globals.get("__spec__")
        module = getattr(spec, "name", None) or frame.f_globals.get("__name__", "?")
        lines.append(f"\n  {module}:{line} in {frame.f_code.co_name}")
    # The innermost frames say most, and what is too long is cut at its end.
    return "".join(lines[-_MAX_FRAMES:])
