"""Starting the services with something to look at meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelrail.cli.console import counting, note
from modelrail.cli.stack.stack import Stack, StackPlan


@asynccontextmanager
async def running_stack(plan: StackPlan) -> AsyncIterator[Stack]:
    """Starts the services with a progress bar, and stops them at the end."""
    with counting("starting services", 3) as update:
        started: list[str] = []

        def on_start(service: str) -> None:
            started.append(service)
            update(len(started))

        stack = Stack(plan, on_start=on_start)
        await stack.__aenter__()
    try:
        yield stack
    finally:
        note("stopping the services")
        await stack.__aexit__(None, None, None)
