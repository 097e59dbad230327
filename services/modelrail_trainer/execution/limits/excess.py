"""What a process may take too much of: output, time, and silence."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from modelrail_trainer.execution.limits.silence import Silence
from modelrail_trainer.execution.limits.stopwatch import Stopwatch
from modelrail_trainer.execution.processes.diagnosis import log_overflows
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.transcript import Transcript
from modelrail_trainer.handover.pulse import SHOW_AND_END
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.jobs.job import Job

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Excess:
    """Why a process is stopped that nobody wished to stop.

    Attributes:
        grace_seconds: Time between `signal` and SIGKILL.
        signal: What it is asked to end with.
        timed_out: Whether the job's time is up.
        silent_seconds: How long it made no progress, if that is why.
    """

    grace_seconds: float
    signal: signal.Signals = signal.SIGTERM
    timed_out: bool = False
    silent_seconds: float = 0.0


class Reader(Protocol):
    """Calls a function that reads from the disk until it succeeds."""

    async def __call__(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns what the function returns."""
        ...


class Excesses:
    """Looks for the excesses of processes.

    Args:
        read: Calls what reads from the disk, after a bad moment of it again.
        directories: Where the processes work.
        limits: What each may take of the machine.
        grace_seconds: Time between the first signal and SIGKILL.
    """

    def __init__(
        self,
        read: Reader,
        directories: JobDirectories,
        limits: JobLimits,
        *,
        grace_seconds: float,
    ) -> None:
        self._read = read
        self._directories = directories
        self._limits = limits
        self._grace_seconds = grace_seconds

    async def find(
        self, job: Job, transcript: Transcript, stopwatch: Stopwatch, silence: Silence
    ) -> Excess | None:
        """Returns what the process of a job takes too much of, if it does."""
        if await self._read(log_overflows, self._directories, job.name, self._limits):
            return Excess(0)  # It would use the time to write more.
        # A process that said its last word is on its way out, and its result counts.
        if transcript.complete:
            return None
        if not stopwatch.remaining_seconds:
            return Excess(self._grace_seconds, timed_out=True)
        if await self._read(silence.is_too_long):
            silent_seconds = silence.seconds
            return Excess(self._grace_seconds, SHOW_AND_END, silent_seconds=silent_seconds)
        return None
