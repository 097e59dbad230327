"""One client process: `python -m modelrail.bench.load.client_process`, started by `clients`.

It reads lines: its assignment as JSON, then `start TIME`, and maybe `stop`. It writes lines:
`{"ready": true}` when its connections stand, then `{"tally": {...}}`. It ends at once when its
standard input does, so it never outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.run import run_assignment

_LINE_BYTES = 1 << 30


def main() -> None:
    """Runs the assignment that stands on standard input."""
    asyncio.run(_serve())


async def _serve() -> None:
    orders = asyncio.StreamReader(limit=_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    line = await orders.readline()
    if not line:
        return
    await _run(json.loads(line), orders)


async def _run(content: Any, orders: asyncio.StreamReader) -> None:
    begin: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def when_ready() -> int:
        _say({"ready": True})
        return await begin

    running = asyncio.create_task(run_assignment(Assignment.from_json(content), when_ready, stop))

    async def obey() -> None:
        while line := await orders.readline():
            order, _, argument = line.decode().strip().partition(" ")
            if order == "start":
                begin.set_result(int(argument))
            else:
                stop.set()
        running.cancel()

    obeying = asyncio.create_task(obey())
    try:
        await asyncio.wait({running})
        if not running.cancelled():
            _say({"tally": running.result().to_json()})
    finally:
        obeying.cancel()


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
