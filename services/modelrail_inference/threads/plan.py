"""How many CPUs this process may use, and how runs and operators share them."""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


class Optimize(enum.Enum):
    """What the CPUs are for: one answer as soon as it can be, or as many as there can be."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """How the CPUs are shared.

    Attributes:
        run_threads: Runs of models at a time.
        intra_op_threads: Threads that share one operator of a run.
        cpus: The CPU of each run where every run can have one to itself; else none.
    """

    run_threads: int
    intra_op_threads: int
    cpus: tuple[int, ...] = ()


def plan(
    cpus: int,
    optimize: Optimize,
    *,
    allowed: Sequence[int] = (),
    workers: int = 1,
    run_threads: int = 0,
    intra_op_threads: int = 0,
) -> ThreadPlan:
    """Shares the CPUs so that no more threads compute at a time than there are CPUs.

    One run on all CPUs answers soonest. As many runs as CPUs, each on one thread, answer most:
    no thread waits for another at the end of an operator.

    Args:
        cpus: CPUs that all workers together may use.
        optimize: What they are for.
        allowed: The numbers of the CPUs on which runs may be kept apart.
        workers: Processes that share them.
        run_threads: Runs at a time, where somebody has chosen; 0 plans them.
        intra_op_threads: Threads of an operator, where somebody has chosen; 0 plans them.
    """
    own = max(1, cpus // workers)
    if not run_threads:
        latency = optimize is Optimize.LATENCY
        run_threads = 1 if latency else max(1, own // (intra_op_threads or 1))
    intra_op_threads = intra_op_threads or max(1, own // run_threads)
    # Below a quota, and beside other workers, nobody knows which of them are free.
    alone = workers == 1 and intra_op_threads == 1 and run_threads == cpus == len(allowed) > 1
    return ThreadPlan(run_threads, intra_op_threads, tuple(allowed) if alone else ())


def allowed_cpus() -> list[int]:
    """Returns the numbers of the CPUs on which this process may run: its affinity mask."""
    return sorted(os.sched_getaffinity(0))


def usable_cpus(root: Path = Path("/")) -> int:
    """Returns the number of CPUs, at least 1: the affinity mask or the cgroup quota.

    `os.cpu_count()` counts the machine's: in a container with a quota, as many threads as that
    fight for the few CPUs that the quota allows.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    affinity = len(allowed_cpus())
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yields the quota of every cgroup around this process, in CPUs: each of them binds."""
    mounted = root / "sys/fs/cgroup"
    groups = (_read(root / "proc/self/cgroup") or "").splitlines()
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            for folder in _upwards(mounted, group):
                quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
                if quota != "max":
                    yield int(quota) / int(period)
        elif "cpu" in controllers.split(","):  # version 1
            for folder in _upwards(mounted / "cpu", group):
                quota = _read(folder / "cpu.cfs_quota_us") or "-1"
                period = _read(folder / "cpu.cfs_period_us") or "0"
                if int(quota) > 0 and int(period) > 0:
                    yield int(quota) / int(period)


def _upwards(mounted: Path, group: str) -> Iterator[Path]:
    """Yields the folders of a cgroup and of those around it.

    In a container the group can be named as the host sees it, while the mount begins at the
    container's own: then only the last folder, the mount itself, exists.
    """
    folder = mounted / group.lstrip("/")
    while folder != mounted and mounted in folder.parents:
        yield folder
        folder = folder.parent
    yield mounted


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
