"""The processes of jobs, as a test finds them on the machine."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def job_processes(place: Path) -> list[psutil.Process]:
    """Returns the processes that live of the jobs below a directory, without their guards."""

    def is_guard(process: psutil.Process, command: list[str]) -> bool:
        # One that is to become the worker has the same command until then.
        try:
            leads = os.getsid(process.pid) == process.pid
        except ProcessLookupError:
            return False
        return leads and "modelrail_trainer.isolation" in command

    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if "--job-directory" in (command := process.info["cmdline"] or [])
        and any(str(place) in word for word in command)
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and not is_guard(process, command)
    ]
