"""The guard of a job: the process above it, which ends when nothing is left that the job started.

A process can leave its group and its session, but not its ancestors: one that loses its parent
becomes a child of the nearest ancestor that asked for that (PR_SET_CHILD_SUBREAPER, prctl(2)). The
guard asks, and stays outside the walls of the job, which so cannot signal it. It ends like the job.
So whoever waits for the guard, its parent or a trainer that came later, waits for all of the job.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from modelrail_trainer.handover.pulse import SHOW_AND_END
from modelrail_trainer.isolation.kernel import adopt_orphans, end_with_parent

END_ALL = signal.SIGUSR2
"""Has a guard kill the job, with everything that it started."""
JOB_PROCESS = "MODELRAIL_JOB_PROCESS"
"""Variable with the process id of the job's first process, for those that it starts."""
_LAST_SECONDS = 30.0
"""For so long the guard waits for the end of what it killed: the disk may hold a process longer."""
_LOOK_SECONDS = 0.02
_HANDED_ON = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, SHOW_AND_END})
"""To the job's first process, and what that makes of them is its affair."""
_AWAITED = frozenset({signal.SIGCHLD, END_ALL})


def fork_guarded() -> bool:
    """Leaves this process behind as a guard, and returns in a child of it, which is the job's.

    Returns:
        Whether the guard gets what the job's processes leave behind when they end.
    """
    guard = os.getpid()
    adopts = True
    try:
        adopt_orphans()
    except OSError:  # the job's own session is ended all the same
        adopts = False
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON | _AWAITED)
    job = os.fork()
    if job:
        _guard(job)
    end_with_parent(guard)
    os.environ[JOB_PROCESS] = str(os.getpid())
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return adopts


def _guard(job: int) -> NoReturn:
    while not _has_ended(job):
        number = signal.sigwait(_AWAITED | _HANDED_ON)
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(job, signal.SIGKILL if number == END_ALL else number)
    status = os.waitpid(job, 0)[1]
    _end_rest()
    _end_like(os.waitstatus_to_exitcode(status))


def _has_ended(job: int) -> bool:
    """Whether the job's first process has ended; others that have are buried."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if ended.si_pid == job:
            return True
        os.waitpid(ended.si_pid, 0)
    return False


def _end_rest() -> None:
    """Kills what the job left behind, until nothing is left of it."""
    deadline = time.monotonic() + _LAST_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        # One that it does not see yet, because it is being born, is there at the next look.
        for pid in _descendants(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait(_AWAITED, _LOOK_SECONDS)
    print("processes of the job could not be ended", file=sys.stderr)


def _descendants(ancestor: int) -> list[int]:
    """Returns the processes below one."""
    children = defaultdict[int, list[int]](list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has just ended
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children[int(fields[1])].append(int(entry.name))
    found = list(children[ancestor])
    for pid in found:  # grows meanwhile
        found += children[pid]
    return found


def _end_like(code: int) -> NoReturn:
    """Ends this process as another one ended; the code is that of `subprocess`."""
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    number = -code
    if number not in {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)
