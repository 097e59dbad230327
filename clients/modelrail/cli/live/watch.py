"""Shows a job in a terminal until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime

from rich.console import Console, Group
from rich.live import Live

from modelrail.cli.live.frame import Look, frame
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.report import History
from modelrail.trainer.v1 import trainer_pb2 as pb

_FRAME_SECONDS = 0.25


async def watch_live(
    trainer: AsyncTrainerClient,
    job: pb.TrainingJob,
    console: Console,
    phase: Callable[[pb.TrainingJob.State], str],
) -> None:
    """Draws a job over and over until it has ended; the last picture stays.

    The events come each once, however often the trainer starts again meanwhile.

    Args:
        trainer: The client.
        job: The job.
        console: The terminal.
        phase: Gives a state in words.

    Raises:
        ModelrailError: The job cannot be followed.
    """
    history = History()

    def picture() -> Group:
        state = history.phases[-1].state if history.phases else job.state
        # A terminal may change its size at any time.
        look = Look(width=console.width, height=console.height, now=datetime.now(UTC))
        return frame(job, history, phase(state), look)

    with Live(console=console, get_renderable=picture, auto_refresh=False) as live:

        async def draw() -> None:
            while True:
                live.refresh()
                await asyncio.sleep(_FRAME_SECONDS)

        # Here and not in a thread of rich's: the history changes only while nobody draws it.
        drawing = asyncio.create_task(draw())
        try:
            async with aclosing(trainer.watch_job(job.name)) as events:
                async for event in events:
                    history.add(event)
        finally:
            drawing.cancel()
            with suppress(asyncio.CancelledError):
                await drawing
        live.refresh()
