"""How long a job has made no progress, by the service's own clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from modelrail_trainer.handover.pulse import PULSE_NAME, last_beat
from modelrail_trainer.jobs.job import JobError
from modelrail_trainer.jobs.state import Reason

_USUAL_PAUSES = 10
"""So many times its longest pause so far a job may be silent, when that is more than the limit."""
_LOOK_SECONDS = 1.0


class Silence:
    """Watches the pulse of one process.

    What counts is the time since this watching began or the pulse was last seen to change: neither
    the clock of the file nor that of the machine matters, and an adopted process begins anew.

    Args:
        directory: The job's directory.
        clock: Seconds that only grow.
        limit_seconds: Silence that is borne; 0: any.
    """

    def __init__(self, directory: Path, clock: Callable[[], float], limit_seconds: float) -> None:
        self._path = directory / PULSE_NAME
        self._clock = clock
        self._limit_seconds = limit_seconds or math.inf
        self._beat: int | None = None
        self._since = self._looked = clock()
        self._longest_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the last progress that was seen."""
        return self._clock() - self._since

    def is_too_long(self) -> bool:
        """Looks at the pulse, if it is time to, and says whether the process must be given up."""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        beat = last_beat(self._path)
        if beat != self._beat:
            if self._beat is not None:
                self._longest_seconds = max(self._longest_seconds, now - self._since)
            self._beat, self._since = beat, now
        return self.seconds > max(self._limit_seconds, _USUAL_PAUSES * self._longest_seconds)


def stalled(seconds: float, log_tail: str) -> JobError:
    """Returns why a job was stopped that had been silent for so long."""
    message = (
        f"no rows were read, no step was made and no stage was reached in {seconds:.0f} s, so the "
        "process was stopped; if its steps take so long, have the trainer's "
        "--max-job-silence-seconds raised, and let code of your own call "
        "modelrail_trainer.user_code.made_progress while it goes on"
    )
    if log_tail:
        message += f"; the end of its log, with what each thread did:\n{log_tail}"
    return JobError(Reason.STALLED, message)
