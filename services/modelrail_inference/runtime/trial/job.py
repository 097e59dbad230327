"""What a trial load is told, and the limits that hold it."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from modelrail_inference.model.definition import Loader, VersionDefinition

_PR_SET_PDEATHSIG = 1
_MAX_FILES = 128
# Reading a graph takes the file, the weights out of it, and the form in which they are computed.
_COPIES_OF_FILES = 3
_THREAD_BYTES = 9 << 20  # a stack of 8 MiB and what the C library keeps of a thread


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What one trial load may take.

    Attributes:
        cpu_seconds: CPU time of all threads.
        memory_bytes: Memory beyond three times the size of the model's files.
        timeout_seconds: Longest time until it has ended.
    """

    cpu_seconds: int
    memory_bytes: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class TrialJob:
    """One trial load.

    Attributes:
        loader: What loads.
        definition: What is loaded.
        threads: Threads that the session starts.
        limits: What it may take.
    """

    loader: Loader
    definition: VersionDefinition
    threads: int
    limits: TrialLimits

    def confine(self) -> None:
        """Puts this process under the limits. There is no way back."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        present_bytes = pages * os.sysconf("SC_PAGE_SIZE")
        memory_bytes = (
            present_bytes
            + self.limits.memory_bytes
            + _COPIES_OF_FILES * self.definition.size_bytes()
            + self.threads * _THREAD_BYTES
        )
        cpu_seconds = math.ceil(self.limits.cpu_seconds)
        for kind, limit in (
            (resource.RLIMIT_AS, memory_bytes),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, _MAX_FILES),
        ):
            resource.setrlimit(kind, (limit, limit))
        # At the first limit SIGXCPU ends the process and tells why; the second allows no handler.
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def end_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends; now, if it has.

    Args:
        parent: The process of that thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)
