"""The client processes of a run: this one, or several that start at one moment."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.run import run_assignment
from modelrail.bench.measurement.tally import Tally

__all__ = ["ClientProcessDied", "run_clients"]

# Long enough for the order to start to reach every process.
_HEAD_START_NS = 50_000_000
_LINE_BYTES = 1 << 26
_END_SECONDS = 5.0


class ClientProcessDied(Exception):
    """A client process ended without figures; the message has its last words."""


async def run_clients(
    assignments: Sequence[Assignment], on_start: Callable[[int], None], stop: asyncio.Event
) -> Tally:
    """Runs every assignment at the same time: a single one here, several in processes of their own.

    Args:
        assignments: What each client shall send.
        on_start: Told the time at which the load begins, of `time.monotonic_ns()`.
        stop: Ends the run early, with what was measured by then.

    Returns:
        The counts of all of them together.

    Raises:
        ClientProcessDied: A process ended without figures.
        OSError: A certificate or key cannot be read.
    """
    if len(assignments) > 1:
        return await _run_processes(assignments, on_start, stop)

    async def when_ready() -> int:
        now_ns = time.monotonic_ns()
        on_start(now_ns)
        return now_ns

    return await run_assignment(assignments[0], when_ready, stop)


async def _run_processes(
    assignments: Sequence[Assignment], on_start: Callable[[int], None], stop: asyncio.Event
) -> Tally:
    clients: list[_ClientProcess] = []
    stopping: asyncio.Task[None] | None = None

    async def stop_all() -> None:
        await stop.wait()
        for client in clients:
            client.say("stop")

    try:
        for assignment in assignments:
            clients.append(await _ClientProcess.start())
            # The key is among it: an argument would show it to every user of the machine.
            clients[-1].say(json.dumps(assignment.to_json()))
        stopping = asyncio.create_task(stop_all())
        await _all([client.hear("ready") for client in clients])
        begin_ns = time.monotonic_ns() + _HEAD_START_NS
        on_start(begin_ns)
        for client in clients:
            client.say(f"start {begin_ns}")
        total = Tally()
        for content in await _all([client.hear("tally") for client in clients]):
            total.add(Tally.from_json(content))
        return total
    except* ClientProcessDied as died:
        raise died.exceptions[0] from None
    except* OSError as failed:
        raise failed.exceptions[0] from None
    finally:
        if stopping is not None:
            stopping.cancel()
        await asyncio.gather(*(client.end() for client in clients))


async def _all(answers: Sequence[Any]) -> list[Any]:
    """Waits for all; the first that fails ends the waiting for the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer) for answer in answers]
    return [task.result() for task in tasks]


class _ClientProcess:
    """One child, which is told what to do in lines on its standard input and answers in lines."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        orders: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        words: asyncio.StreamReader,
    ) -> None:
        self._process = process
        self._orders = orders
        self._answers = answers
        self._words = words

    @classmethod
    async def start(cls) -> Self:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modelrail.bench.load.client_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            # Ctrl-C reaches the whole group of a terminal; these are stopped by `stop` instead.
            process_group=0,
        )
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError("expected three pipes, as asked for")
        return cls(process, process.stdin, process.stdout, process.stderr)

    def say(self, line: str) -> None:
        self._orders.write(line.encode() + b"\n")

    async def hear(self, kind: str) -> Any:
        """Returns what the child says under `kind`.

        Raises:
            ClientProcessDied: It ended instead.
        """
        line = await self._answers.readline()
        if line:
            return json.loads(line)[kind]
        words = (await self._words.read()).decode(errors="replace").strip()
        status = await self._process.wait()
        last = words.splitlines()[-1] if words else "it said nothing"
        raise ClientProcessDied(f"a client process ended with status {status}: {last}")

    async def end(self) -> None:
        """Ends the child, which ends by itself when nobody holds its standard input any more."""
        self._orders.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
