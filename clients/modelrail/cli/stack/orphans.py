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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def adopting(is_own: Callable[[int], bool]) -> Iterator[None]:
    """Makes this process the parent of descendants that lose theirs, and collects their remains.

    Args:
        is_own: Whether a child was started by asyncio here, which collects those itself.
    """
    loop = asyncio.get_running_loop()
    _set_subreaper(True)
    loop.add_signal_handler(signal.SIGCHLD, _collect, is_own)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)
        _set_subreaper(False)


async def end_orphans(is_own: Callable[[int], bool], grace_seconds: float) -> int:
    """Ends every adopted process and returns how many there were.

    Args:
        is_own: Whether a child was started by asyncio here.
        grace_seconds: Time between SIGTERM and SIGKILL.
    """
    found = 0
    for pid in [pid for pid in _children() if not is_own(pid)]:
        found += 1
        await _end(pid, grace_seconds)
    return found


async def _end(pid: int, grace_seconds: float) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        _signal_group(pid, signal.SIGTERM)
        await asyncio.wait_for(ended.wait(), grace_seconds)
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        _signal_group(pid, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signals the whole group of a process that leads one, else the process."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return


def _collect(is_own: Callable[[int], bool]) -> None:
    for pid in _children():
        if not is_own(pid):
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def _children() -> list[int]:
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []  # A kernel without CONFIG_PROC_CHILDREN: nothing is adopted on purpose there.
    return [int(pid) for pid in text.split()]


def _set_subreaper(on: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
