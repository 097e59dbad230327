"""Work that a few tasks share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


async def share(work: Callable[[T], Awaitable[None]], items: Iterable[T], *, tasks: int) -> None:
    """Does the work for every item, for at most so many at a time.

    The first failure ends what is under way, and is raised.
    """
    rest = iter(items)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(_work_off(work, rest))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _work_off(work: Callable[[T], Awaitable[None]], rest: Iterator[T]) -> None:
    for item in rest:
        await work(item)
