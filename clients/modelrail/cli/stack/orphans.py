"""Processes that a stopped service left behind: adopted, so that they can be found and ended.

Training jobs outlive their trainer on purpose. When the command line stops the trainer for good,
they must end as well; as they live in sessions of their own, only adoption finds them (prctl(2),
PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def adopting() -> Iterator[None]:
    """Makes this process the parent of descendants that lose theirs.

    What they leave when they end is collected by `end_orphans` and not before: while commands run,
    only asyncio may wait for children, or it would miss the end of those that it started itself.
    """
    _set_subreaper(True)
    try:
        yield
    finally:
        _set_subreaper(False)


async def end_orphans(grace_seconds: float) -> int:
    """Ends every child process that is left, and returns how many still ran.

    To be called when everything that asyncio started here has ended and was awaited.

    Args:
        grace_seconds: Time between SIGTERM and SIGKILL.
    """
    found = 0
    for pid in _children():
        found += await _end(pid, grace_seconds)
    return found


async def _end(pid: int, grace_seconds: float) -> bool:
    """Ends one process; returns whether it still ran."""
    if os.waitpid(pid, os.WNOHANG) != (0, 0):  # noqa: ASYNC222 (WNOHANG never waits)
        return False
    descriptor = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        _signal_group(pid, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), grace_seconds)
        _signal_group(pid, signal.SIGKILL)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        # Cancelled, nobody waits any more: what is left of it goes with this process.
        _signal_group(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 (WNOHANG never waits)
    return True


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signals the whole group of a process that leads one, else the process."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return


def _children() -> list[int]:
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []  # A kernel without CONFIG_PROC_CHILDREN: nothing is adopted on purpose there.
    return [int(pid) for pid in text.split()]


def _set_subreaper(on: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
