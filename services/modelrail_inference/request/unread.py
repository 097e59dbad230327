"""Replies that lie in memory until their callers take them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelrail_server.errors import ResourceExhausted, Unavailable

_RETRY_SECONDS = 1.0
_OVERRUN = 2
"""What was let in before its connection had too much unread may exceed the limit so many times."""
_SHARED = "unix:"
"""On a socket of this kind all callers have one address: nobody knows who of them reads."""


class UnreadReplies:
    """Counts the memory of replies that were made and that no transport has carried away yet.

    The replies of a caller who reads slowly, or not at all, wait here. A connection on which more
    waits than others could still use gets no new ones until some are read: one alone may have half
    of the memory, two a third each, and whoever reads what it gets always finds room (dynamic
    thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998). Callers whom a
    proxy puts on one connection share its part, and those of a unix socket share all.

    Requests that run already when the limit is reached are still answered.

    Belongs to one event loop.

    Args:
        max_bytes: Memory of all replies, in bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._connections: dict[str, int] = {}
        self._released: asyncio.Event | None = None
        self.size_bytes = 0

    def check(self, peer: Callable[[], str]) -> None:
        """Lets a request go on whose reply will find room.

        Args:
            peer: Tells the connection on which it came.

        Raises:
            ResourceExhausted: The caller has not taken what it was answered before.
            Unavailable: All callers together have not.
        """
        if not self.size_bytes:
            return
        connection = peer()
        if self._has_its_part(connection):
            raise ResourceExhausted(
                f"{self._connections[connection]} bytes of replies on this connection wait to be "
                "read by their caller",
                reason="REPLIES_UNREAD",
                retry_after_seconds=_RETRY_SECONDS,
            )
        if self.size_bytes >= _OVERRUN * self._max_bytes:
            raise Unavailable(
                f"{self.size_bytes} bytes of replies wait to be read by their callers",
                reason="REPLIES_UNREAD",
                retry_after_seconds=_RETRY_SECONDS,
            )

    def of_call(self, connection: str) -> CallReplies:
        """Returns what counts the replies of one call on a connection."""
        return CallReplies(self, connection)

    async def _room_on(self, connection: str) -> None:
        while self._has_its_part(connection):
            if self._released is None:
                self._released = asyncio.Event()
            await self._released.wait()

    def _hold(self, connection: str, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self._connections[connection] = self._connections.get(connection, 0) + size_bytes

    def _release(self, connection: str, size_bytes: int) -> None:
        self.size_bytes -= size_bytes
        rest = self._connections.pop(connection, 0) - size_bytes
        if rest:
            self._connections[connection] = rest
        if self._released is not None:
            self._released.set()
            self._released = None

    def _has_its_part(self, connection: str) -> bool:
        """Whether a connection has as much unread as is free, or more."""
        unread = self._connections.get(connection, 0)
        free = self._max_bytes - self.size_bytes
        return unread > 0 and (free <= 0 if connection.startswith(_SHARED) else unread >= free)


class CallReplies:
    """The replies of one call, of which a stream has many.

    Args:
        unread: The replies of all calls.
        connection: Where they are read.
    """

    def __init__(self, unread: UnreadReplies, connection: str) -> None:
        self._unread = unread
        self._connection = connection
        self._size_bytes = 0

    async def room(self) -> None:
        """Waits until more replies may be made for the connection."""
        await self._unread._room_on(self._connection)

    def hold(self, size_bytes: int) -> None:
        """Counts a reply that the transport has, or will be given."""
        self._unread._hold(self._connection, size_bytes)
        self._size_bytes += size_bytes

    def taken(self, size_bytes: int) -> None:
        """Counts a reply no more, as the transport has carried it away."""
        self._unread._release(self._connection, size_bytes)
        self._size_bytes -= size_bytes

    def close(self) -> None:
        """Counts none of them any more: the call has ended."""
        self.taken(self._size_bytes)
