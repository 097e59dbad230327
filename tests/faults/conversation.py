"""A caller who streams, asks again when answered, and tells what became of it.

`python -m tests.faults.conversation ADDRESS` is such a caller in a process of its own, and so on a
network of its own. It tells on its output, one line a time, and starts again after each error.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import numpy as np

from modelrail.client import AsyncInferenceClient, Connection, InferRequest, ModelrailError

ANSWERED = "answered"
SHORT: dict[str, Any] = {"keepalive_time_seconds": 1.0, "keepalive_timeout_seconds": 0.5}


async def converse(
    client: AsyncInferenceClient, tell: Callable[[str], None], *, columns: int, questions: int
) -> None:
    """Streams until the stream fails, and tells `answered` once and then the kind of the error.

    Args:
        client: To whom.
        tell: Takes each of both.
        columns: Numbers in a question, and in its answer.
        questions: After so many the caller is silent, and the stream stays open.
    """
    turn = asyncio.Semaphore(1)

    async def ask() -> AsyncIterator[InferRequest]:
        for _ in range(questions):
            await turn.acquire()
            yield InferRequest(model="echo", inputs={"x": np.ones((1, columns), np.float32)})
        await asyncio.Event().wait()

    told = False
    try:
        async with aclosing(client.stream_infer(ask())) as answers:
            async for _ in answers:
                if not told:
                    tell(ANSWERED)
                    told = True
                turn.release()
    except ModelrailError as error:
        tell(type(error).__name__)


async def main(address: str) -> None:
    """Converses for ever."""
    async with AsyncInferenceClient(Connection(address=address, **SHORT)) as client:
        while True:
            await converse(client, _tell, columns=4, questions=sys.maxsize)
            # Nobody is there to wait for: the next try fails as fast.
            await asyncio.sleep(0.1)


def _tell(event: str) -> None:
    print(event, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
