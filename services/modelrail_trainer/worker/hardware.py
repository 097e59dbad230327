"""What a job runs on, in words, for the lineage of its version.

A specification and its data give the same bytes only where this is the same: other processors, and
other numbers of threads and processes, round differently.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from modelrail_trainer.worker.learning.device import described

_CPU_INFO = Path("/proc/cpuinfo")


def hardware_of(device: torch.device, processes: int) -> str:
    """Returns processor, processors and threads, and what else there is.

    Args:
        device: What the steps were computed on.
        processes: How many trained together.
    """
    threads = torch.get_num_threads()
    parts = [
        f"{platform.machine()} {_processor()}".strip(),
        f"{len(os.sched_getaffinity(0))} processors",
        f"{threads} {'thread' if threads == 1 else 'threads'}",
    ]
    if processes > 1:
        parts.append(f"{processes} processes")
    if device.type != "cpu":
        parts.append(described(device))
    return ", ".join(parts)


def _processor() -> str:
    """Returns the model's name as the kernel knows it; on other systems the little that is told."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
