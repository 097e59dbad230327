"""How many CPUs this process may use: the affinity mask and the cgroup quota, whichever is less."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_CGROUP_V1_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_cpus() -> int:
    """Returns the number of CPUs, at least 1.

    `os.cpu_count()` counts the machine's: in a container with a quota, as many threads as that
    fight for the few CPUs that the quota allows.
    """
    affinity = len(os.sched_getaffinity(0))
    quota = _quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def _quota() -> float | None:
    v2 = _read(_CGROUP_V2)
    if v2 is not None:
        quota, _, period = v2.partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    v1_quota, v1_period = _read(_CGROUP_V1_QUOTA), _read(_CGROUP_V1_PERIOD)
    if v1_quota is None or v1_period is None or int(v1_quota) <= 0:
        return None
    return int(v1_quota) / int(v1_period)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
