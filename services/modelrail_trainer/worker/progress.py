"""Progress of this process, told to whoever watches its pulse.

A process runs one job, so it has one pulse: whatever reads rows, trains or compares tells of it
here, however deep in the work it is.
"""

from __future__ import annotations

from pathlib import Path

from modelrail_trainer.handover.pulse import PULSE_NAME, Pulse

_pulse: Pulse | None = None


def start_pulse(directory: Path) -> None:
    """Begins to tell of progress in the job's directory; before this nothing is told."""
    global _pulse  # noqa: PLW0603  # one process, one job
    _pulse = Pulse(directory / PULSE_NAME)


def made_progress() -> None:
    """Tells that rows were read, a step was made, or a stage was reached."""
    if _pulse is not None:
        _pulse.beat()
