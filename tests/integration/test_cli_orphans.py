"""Processes that a stack adopts, beside those that commands start themselves."""

from __future__ import annotations

import asyncio
import os
import sys

import psutil

from modelrail.cli.stack.orphans import adopting, end_orphans

# Starts a process in a session of its own, tells its id, and leaves it behind.
_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True,
                         stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
"""
_WAITS = "import signal; signal.pause()"
_IGNORES = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"


async def leave_behind(program: str) -> int:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, program, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await parent.communicate()
    return int(output)


async def test_commands_learn_the_status_of_their_own_processes() -> None:
    with adopting():
        orphan = await leave_behind("pass")
        started = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", f"raise SystemExit({code})")
            for code in range(1, 9)
        ]
        statuses = await asyncio.gather(*(process.wait() for process in started))
        assert statuses == list(range(1, 9))
        await end_orphans(5.0)
        assert not psutil.pid_exists(orphan)


async def test_what_was_left_behind_is_ended_even_when_it_ignores_the_request() -> None:
    with adopting():
        orphans = [await leave_behind(_WAITS), await leave_behind(_IGNORES)]
        assert all(os.getpgid(orphan) == orphan for orphan in orphans)
        assert await end_orphans(0.5) == 2
        assert not any(psutil.pid_exists(orphan) for orphan in orphans)
