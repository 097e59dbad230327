"""A line between a client and a service that can be cut without either end being told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

__all__ = ["Line", "line_to"]


class Line:
    """A TCP proxy. While it is cut it takes nothing and closes nothing, whatever its ends do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._whole = asyncio.Event()
        self._whole.set()
        self._joining: set[asyncio.Task[None]] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._ends: list[asyncio.StreamWriter] = []
        self.address = ""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Joins a new connection with one of its own to the service."""
        # Without somebody who knows its writer, a connection is closed, and its end told.
        self._ends.append(writer)
        _keep(self._joining, self._join(reader, writer))

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._ends.append(far_writer)
        _keep(self._carrying, self._carry(reader, far_writer))
        _keep(self._carrying, self._carry(far_reader, writer))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        sink.close()

    async def cut(self) -> None:
        """Carries nothing more, for ever on the connections that there are."""
        self._whole.clear()
        await _end(self._carrying)

    def mend(self) -> None:
        """Carries new connections."""
        self._whole.set()

    async def close(self) -> None:
        """Closes everything."""
        await _end(self._joining)
        await _end(self._carrying)
        for writer in self._ends:
            writer.transport.abort()


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    ended = list(tasks)
    for task in ended:
        task.cancel()
    await asyncio.gather(*ended, return_exceptions=True)


@asynccontextmanager
async def line_to(address: str) -> AsyncIterator[Line]:
    """A line to a service on this machine."""
    line = Line(int(address.rpartition(":")[2]))
    server = await asyncio.start_server(line.accept, "127.0.0.1", 0)
    line.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        await line.close()
        server.close()
