"""What a job may take of the machine."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelrail_trainer.isolation.layer import Layer, LayerName

CPU_TIME_UP_NAME = "cpu-time-is-up"
"""File in the job's directory into which a process whose CPU time is up writes what it was doing.
Nobody may see its exit status: that of one among several, or of one that outlived its trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """What one job may take; 0 means no limit.

    Attributes:
        memory_bytes: Memory that a process of the job may ask for.
        cpu_seconds: CPU time of all threads of a process of the job.
        processes: Processes and threads.
        file_bytes: Largest file, the log included. Never 0.
        log_bytes: Output on standard output and standard error. The supervisor watches it.
    """

    memory_bytes: int = 0
    cpu_seconds: int = 0
    processes: int = 0
    file_bytes: int
    log_bytes: int = 0


def limit_resources(limits: JobLimits) -> list[Layer]:
    """Puts this process under the limits and tells which of them hold. There is no way back."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return [
        _layer(LayerName.MEMORY, limits.memory_bytes, _limit_memory),
        _layer(LayerName.CPU_TIME, limits.cpu_seconds, _limit_cpu_time),
        _layer(LayerName.FILE_SIZE, limits.file_bytes, _limit_file_size),
        _layer(LayerName.PROCESSES, limits.processes, _limit_processes),
    ]


def _layer(name: LayerName, limit: int, apply: Callable[[int], tuple[bool, str]]) -> Layer:
    if limit == 0:
        return Layer(name, False, "no limit is set")
    try:
        active, detail = apply(limit)
    # A limit of the trainer's own that is lower already cannot be raised.
    except (OSError, ValueError) as error:
        return Layer(name, False, f"the limit could not be set: {error}")
    return Layer(name, active, detail)


def _set(kind: int, soft: int, hard: int) -> int:
    """Sets a limit, or leaves a lower one that this process was born with; returns what holds."""
    highest = resource.getrlimit(kind)[1]
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    resource.setrlimit(kind, (soft, hard))
    return resource.getrlimit(kind)[0]


def _limit_memory(limit: int) -> tuple[bool, str]:
    # RLIMIT_AS would count what libraries map and never touch: for torch twice what it uses, with
    # CUDA hundreds of times.
    held = _set(resource.RLIMIT_DATA, limit, limit)
    return True, f"RLIMIT_DATA, {held} bytes for each process"


def _limit_cpu_time(limit: int) -> tuple[bool, str]:
    # At the first limit SIGXCPU ends the process and tells why; the second allows no handler.
    held = _set(resource.RLIMIT_CPU, limit, limit + 1)
    return True, f"RLIMIT_CPU, {held} s for each process"


def _limit_file_size(limit: int) -> tuple[bool, str]:
    held = _set(resource.RLIMIT_FSIZE, limit, limit)
    return True, f"RLIMIT_FSIZE, {held} bytes for each file"


def _limit_processes(limit: int) -> tuple[bool, str]:
    if os.geteuid() == 0:
        return False, "the kernel counts no processes of root; run the trainer as another user"
    # The kernel counts everything that the user runs, so what runs already comes on top.
    present = sum(_threads_of(os.geteuid()))
    held = _set(resource.RLIMIT_NPROC, present + limit, present + limit)
    return True, f"RLIMIT_NPROC, {held} processes and threads of the trainer's user in all"


def _threads_of(user: int) -> Iterator[int]:
    """Yields the number of threads of each process of a user."""
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and process.stat().st_uid == user:
                yield len(list((process / "task").iterdir()))
        except OSError:  # it ended meanwhile, or is hidden
            continue
