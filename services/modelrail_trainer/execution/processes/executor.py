"""Where jobs run: what the trainer asks of an executor, whatever is behind it.

An executor submits an execution, finds one again that an earlier trainer submitted, and lists those
that are there; an execution is observed, signalled and awaited, and cleans up behind itself. The
job's directory is all that both sides share: the specification lies in it, and in it the worker
leaves its journal, checkpoints and result, and the executor what the processes print. So an
executor on other machines needs a directory that they share, or carries it there and back.

`local.py` is the executor of this machine, for one process and for several that torchrun starts.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from modelrail.names import TrainingJobName
from modelrail_trainer.isolation.limits import JobLimits

LOG_NAME = "worker.log"
"""File in the job's directory to which what its processes print is appended."""


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """How a process ended; the code is None for an adopted one, whose status went to its parent.

    Negative codes are signals, as in `subprocess`.

    Attributes:
        code: Exit status.
        cpu_seconds: CPU time of all its threads; 0 where the code is None.
    """

    code: int | None
    cpu_seconds: float = field(default=0.0, compare=False)

    def ran_out_of_cpu_time(self, limit_seconds: int) -> bool:
        """Whether the limit of CPU time ended it; 0 is no limit."""
        # The second limit kills a process that ignores the signal of the first.
        return self.code == -signal.SIGXCPU or (
            self.code == -signal.SIGKILL and 0 < limit_seconds <= self.cpu_seconds
        )

    def __str__(self) -> str:
        if self.code is None:
            return "the process ended"
        if self.code >= 0:
            return f"the process ended with exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"


class Execution(Protocol):
    """One attempt of a job: its process, with everything that it starts.

    Use as an asynchronous context manager on the loop that awaits its end. Leaving the context lets
    go of the execution and does not end it.
    """

    @property
    def handle(self) -> str:
        """What its executor finds it by, now and after a restart of the trainer."""

    @property
    def age_seconds(self) -> float:
        """How long ago it was started, by a clock that nobody sets."""

    @property
    def exit_event(self) -> asyncio.Event:
        """Set when it has ended."""

    @property
    def exited(self) -> bool:
        """Whether it has ended."""

    def release(self) -> None:
        """Lets an execution that was submitted run its command."""

    async def wait(self) -> ProcessExit:
        """Waits for its end, removes what it left running, and tells how it ended."""

    async def stop(
        self, grace_seconds: float, *, first: signal.Signals = signal.SIGTERM
    ) -> ProcessExit:
        """Ends it: `first`, and after `grace_seconds` SIGKILL to all of its processes."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...


class Executor(Protocol):
    """A place where jobs run.

    Attributes:
        limits: What one execution may take of it.
    """

    limits: JobLimits

    def submit(
        self, directory: Path, options: Sequence[str] = (), *, processes: int = 1
    ) -> Execution:
        """Prepares an execution that waits for its release. Blocks.

        Nothing of it may run before that, nor at all should the trainer die before: a job whose
        handle is stored nowhere could not be found again.

        Args:
            directory: Of the job.
            options: For the worker program, beside those of every job.
            processes: How many train together.

        Raises:
            OSError: It cannot be started.
        """

    def find(self, handle: str) -> Execution | None:
        """Returns an execution that was submitted before; None when it is over."""

    def executions(self, root: Path) -> Sequence[tuple[TrainingJobName, Execution]]:
        """Returns all that work in a directory below `root`, whoever submitted them. Blocks."""
