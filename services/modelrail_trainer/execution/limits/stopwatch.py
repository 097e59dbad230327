"""How long a job was carried out, by clocks that only go forward.

That is from the moment it was taken from the queue until its process is gone: its folder made, its
objects copied, its process run. Waiting for a place or for the registry does not count.

Setting the wall clock neither ends a job nor spares it: within one process of the trainer the time
comes from the event loop's clock, and the age of an adopted process from the kernel's since boot.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from modelrail_trainer.jobs.job import Job

NOTE_SECONDS = 5.0
"""How often the time is stored, for the case of a crash."""


class Stopwatch:
    """Counts the present attempt of a job on top of the earlier ones.

    Args:
        job: The job, as it was when this attempt began or was adopted.
        clock: Seconds that only grow.
        age_seconds: How long the present process has run already.
    """

    def __init__(self, job: Job, clock: Callable[[], float], *, age_seconds: float = 0.0) -> None:
        # What was noted of this attempt by an earlier trainer holds in any case.
        begun = max(job.run_seconds, job.earlier_run_seconds + age_seconds)
        self._clock = clock
        self._zero = clock() - begun
        self._noted_seconds = begun
        limit = job.policy.max_run_duration
        self._limit_seconds = math.inf if limit is None else limit.total_seconds()

    @property
    def seconds(self) -> float:
        """Seconds in which the job was carried out."""
        return self._clock() - self._zero

    @property
    def is_limited(self) -> bool:
        """Whether the job may run for so long and no longer."""
        return math.isfinite(self._limit_seconds)

    @property
    def remaining_seconds(self) -> float:
        """Seconds that the job may still run; infinite without a limit."""
        return max(0.0, self._limit_seconds - self.seconds)

    @property
    def should_be_noted(self) -> bool:
        """Whether enough has passed since `noted` to store it, for the case of a crash."""
        return self.is_limited and self.seconds - self._noted_seconds >= NOTE_SECONDS

    def noted(self, seconds: float) -> None:
        """Tells that the time was stored."""
        self._noted_seconds = seconds
