"""Threads stay on a CPU each while all of them compute, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from numpy.typing import NDArray

from modelrail_inference.threads.placement import Placement
from tests.unit.scheduling_house import Houses, Session, began, held, long_runs, queued

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2,
    reason="only Linux keeps threads on CPUs, and it takes two of them",
)

GONE = 4000
"""No machine of ours has so many CPUs."""


@pytest.fixture
def cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def on_a_thread(task: Callable[[], None]) -> None:
    """Runs what changes the CPUs of its thread, and leaves those of the test alone."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(task).result()


def test_a_thread_stays_until_it_need_not(cpus: list[int]) -> None:
    def task() -> None:
        placement = Placement(cpus[1], cpus)
        placement.stay(True)
        assert os.sched_getaffinity(0) == {cpus[1]}
        placement.stay(False)
        assert os.sched_getaffinity(0) == set(cpus)

    on_a_thread(task)


@pytest.mark.parametrize("cpu", [None, GONE])
def test_without_a_cpu_of_its_own_linux_places(cpu: int | None, cpus: list[int]) -> None:
    def task() -> None:
        placement = Placement(cpu, cpus)
        placement.stay(True)
        assert os.sched_getaffinity(0) == set(cpus)
        placement.stay(False)
        assert os.sched_getaffinity(0) == set(cpus)

    on_a_thread(task)


class Placed(Session):
    """Notes where its runs may run."""

    def __init__(self) -> None:
        super().__init__()
        self.cpus: list[set[int]] = []

    def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
        self.cpus.append(os.sched_getaffinity(0))
        return super().run(inputs, outputs, run)


async def test_runs_stay_apart_while_all_threads_compute(houses: Houses, cpus: list[int]) -> None:
    sessions = {name: Placed() for name in "ab"}
    a, b = sessions.values()
    house = await houses.make(sessions, threads=2, cpus=cpus[:2])
    with held(b):
        with held(a):
            first = house.ask(1.0, model="a")
            await began(a)
            second = house.ask(1.0, model="b")
            await began(b)
            third = house.ask(1.0, model="a")
            await queued(house, 1)
        await asyncio.gather(first, third)
    await second
    # The first had the machine to itself, then both threads were at work.
    assert a.cpus == [set(cpus), {cpus[0]}]
    assert b.cpus == [{cpus[1]}]
    for name, session in sessions.items():
        await house.ask(1.0, model=name)
        assert session.cpus[-1] == set(cpus[:2])


async def test_a_thread_that_waits_may_wake_anywhere(houses: Houses, cpus: list[int]) -> None:
    sessions = {name: Placed() for name in "ab"}
    house = await houses.make(sessions, threads=2, cpus=cpus[:2])
    with held(sessions["a"]):
        task = house.ask(1.0, model="a")
        await began(sessions["a"])
        await house.ask(1.0, model="b")
        assert sessions["b"].cpus == [{cpus[1]}]
        thread = house.scheduler._threads[1].native_id
        assert thread is not None
        for _ in range(1000):
            if os.sched_getaffinity(thread) == set(cpus[:2]):
                break
            await asyncio.sleep(0.001)
        assert os.sched_getaffinity(thread) == set(cpus[:2])
    await task


async def test_threads_that_stand_in_stay_nowhere(houses: Houses, cpus: list[int]) -> None:
    sessions = {name: Placed() for name in "abc"}
    house = await houses.make(sessions, threads=2, cpus=cpus[:2])
    with held(sessions["a"]), held(sessions["b"]):
        tasks = await long_runs(house, sessions, "ab")
        tasks.append(house.ask(1.0, model="c"))
        await queued(house, 1)
        house.scheduler._relieve()
        await began(sessions["c"])
        assert sessions["c"].cpus == [set(cpus)]
    await asyncio.gather(*tasks)
