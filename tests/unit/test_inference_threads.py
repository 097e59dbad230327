"""Threads follow the CPUs that the process may use, not those that the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelrail_inference.threads.plan import Optimize, ThreadPlan, plan, usable_cpus

LATENCY, THROUGHPUT = Optimize.LATENCY, Optimize.THROUGHPUT


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 3),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 8),
        # A service's own group has no quota, the slice around it has one.
        (
            {
                "proc/self/cgroup": "0::/ml.slice/infer.service",
                "sys/fs/cgroup/ml.slice/cpu.max": "200000 100000",
                "sys/fs/cgroup/ml.slice/infer.service/cpu.max": "max 100000",
            },
            2,
        ),
        # In a container the group has the host's name and is mounted as the root.
        ({"proc/self/cgroup": "0::/kubepods/pod1", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n0::/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_the_smallest_of_affinity_and_quotas_counts(
    tmp_path: Path, files: dict[str, str], cpus: int
) -> None:
    assert usable_cpus(write(tmp_path, files)) == cpus


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        (plan(8, LATENCY), ThreadPlan(1, 8)),
        (plan(8, THROUGHPUT), ThreadPlan(8, 1)),
        (plan(8, LATENCY, workers=2), ThreadPlan(1, 4)),
        (plan(8, THROUGHPUT, workers=2), ThreadPlan(4, 1)),
        (plan(2, THROUGHPUT, workers=5), ThreadPlan(1, 1)),
        (plan(1, LATENCY), ThreadPlan(1, 1)),
        (plan(8, LATENCY, run_threads=2), ThreadPlan(2, 4)),
        (plan(8, THROUGHPUT, intra_op_threads=4), ThreadPlan(2, 4)),
        (plan(2, LATENCY, run_threads=3, intra_op_threads=5), ThreadPlan(3, 5)),
    ],
)
def test_no_more_threads_compute_than_there_are_cpus_unless_somebody_says_so(
    planned: ThreadPlan, expected: ThreadPlan
) -> None:
    assert planned == expected


@pytest.mark.parametrize(
    ("planned", "cpus"),
    [
        (plan(3, THROUGHPUT, allowed=[2, 5, 6]), (2, 5, 6)),
        (plan(3, LATENCY, allowed=[2, 5, 6], run_threads=3), (2, 5, 6)),
        # A quota allows two of three at a time, whichever they are.
        (plan(2, THROUGHPUT, allowed=[2, 5, 6]), ()),
        (plan(2, THROUGHPUT, allowed=[2, 5, 6], run_threads=3), ()),
        (plan(3, THROUGHPUT, allowed=[2, 5, 6], run_threads=4), ()),
        (plan(4, THROUGHPUT, allowed=[0, 1, 2, 3], intra_op_threads=2), ()),
        (plan(3, THROUGHPUT, allowed=[2, 5, 6], intra_op_threads=2, run_threads=3), ()),
        (plan(2, THROUGHPUT, allowed=[0, 1], workers=2), ()),
        (plan(3, LATENCY, allowed=[2, 5, 6]), ()),
        (plan(1, LATENCY, allowed=[4]), ()),
    ],
)
def test_runs_have_a_cpu_each_where_every_one_can_have_its_own(
    planned: ThreadPlan, cpus: tuple[int, ...]
) -> None:
    assert planned.cpus == cpus
