"""Processes that are watched and stopped whoever started them.

A worker outlives the trainer and is adopted by the next one, which is not its parent. So nothing
here relies on parentage: the exit is awaited through a pidfd, and a process is known by pid and
start time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modelrail_trainer.execution.processes.executor import ProcessExit
from modelrail_trainer.isolation.guard import END_ALL

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_GUARD_SECONDS = 10.0
"""So long a guard may take to end a job, before it is ended with the job's group."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for all time: a pid is used again, a pid with its start time is not.

    Attributes:
        pid: Process id, which is also the id of its session and process group.
        start_ticks: Field 22 of `/proc/PID/stat`, clock ticks since boot.
        boot_id: `/proc/sys/kernel/random/boot_id`, because ticks begin again at every boot.
    """

    pid: int
    start_ticks: int
    boot_id: str

    @property
    def handle(self) -> str:
        """The identity in writing."""
        return f"{self.pid}:{self.start_ticks}:{self.boot_id}"

    @classmethod
    def from_handle(cls, handle: str) -> Self:
        """Reads `handle` back.

        Raises:
            ValueError: It is none.
        """
        pid, start_ticks, boot_id = handle.split(":")
        return cls(int(pid), int(start_ticks), boot_id)


def identify(pid: int) -> ProcessIdentity | None:
    """Returns the identity of a living process; None when there is none, or only its remains."""
    fields = _stat(pid)
    if fields is None or fields[0] in {"Z", "X"}:
        return None
    return ProcessIdentity(pid, int(fields[19]), _BOOT_ID.read_text().strip())


def _stat(pid: int) -> list[str] | None:
    """Returns `/proc/PID/stat` from its third field, the state, on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, and may hold blanks and parentheses.
    return text.rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    if fields is None:
        return 0.0
    # Its own and, which is nearly all for a guard, that of the children that it has awaited.
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class JobProcess:
    """One process in a session of its own, the guard of a job, with everything that it starts.

    Use as an asynchronous context manager on the loop that awaits its exit. Leaving the context
    lets go of the process and does not end it.
    """

    def __init__(self, identity: ProcessIdentity, child: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self._child = child
        self._exited = asyncio.Event()
        self._pidfd = -1

    async def __aenter__(self) -> Self:
        try:
            self._pidfd = os.pidfd_open(self.identity.pid)
        except ProcessLookupError:
            self._exited.set()
            return self
        if self._child is None and identify(self.identity.pid) != self.identity:
            # The pid was given to another process between two looks.
            self._exited.set()
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._close_gate()

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._exited.set()

    def release(self) -> None:
        """Lets a process that the executor started run its command."""
        if self._child is None or self._child.stdin is None:
            return
        # With a broken pipe it died at the gate; the exit tells how.
        with suppress(BrokenPipeError):
            self._child.stdin.write(b"\n")
            self._child.stdin.flush()
        self._close_gate()

    def _close_gate(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.close()

    @property
    def handle(self) -> str:
        """Its identity in writing."""
        return self.identity.handle

    @property
    def age_seconds(self) -> float:
        """How long ago it was started, in this boot."""
        started = self.identity.start_ticks / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)

    @property
    def exit_event(self) -> asyncio.Event:
        """Set when the process has ended."""
        return self._exited

    @property
    def exited(self) -> bool:
        """Whether the process has ended."""
        return self._exited.is_set()

    async def wait(self) -> ProcessExit:
        """Waits for the end of the process, ends what it left running, and tells how it ended."""
        await self._exited.wait()
        # Its guard has ended it all, unless somebody killed the guard.
        self._signal_group(signal.SIGKILL)
        if self._child is None:
            return ProcessExit(None)
        # The times can be read until the status is collected, which is all that is left to do.
        cpu_seconds = _cpu_seconds(self.identity.pid)
        return ProcessExit(self._child.wait(), cpu_seconds)

    async def stop(
        self, grace_seconds: float, *, first: signal.Signals = signal.SIGTERM
    ) -> ProcessExit:
        """Ends the process: `first` to the job's own, and after `grace_seconds` SIGKILL to all.

        What the job started is for it to end: a job whose children die first cannot keep what it
        has done. What is left after that, the guard ends, which so has to outlive it.
        """
        if not self._exited.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, first)
        if not await self._exits_within(grace_seconds):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, END_ALL)
            if not await self._exits_within(_GUARD_SECONDS):
                self._signal_group(signal.SIGKILL)
        return await self.wait()

    async def _exits_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        return self.exited

    def _signal_group(self, number: signal.Signals) -> None:
        """Signals every process of the group, unless its number was given to strangers."""
        pid = self.identity.pid
        if self._child is None:
            fields = _stat(pid)
            # While one member lives, the kernel gives the number to nobody else. So another start
            # time means that no member is left.
            if fields is not None and int(fields[19]) != self.identity.start_ticks:
                return
        elif self._child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
