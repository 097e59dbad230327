"""Replies that lie in memory until their callers take them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelrail_server.errors import ResourceExhausted, Unavailable

_CONNECTION_SHARE = 2
"""Part of the memory for all that the replies on one connection may take."""
_RETRY_SECONDS = 1.0


class UnreadReplies:
    """Counts the memory of replies that were made and that no transport has carried away yet.

    The replies of a caller who reads slowly, or not at all, wait here. It is given no new ones
    until it has taken some of them, long before those of others find no room.

    Belongs to one event loop.

    Args:
        max_bytes: Memory of replies from which on no new requests are taken, in bytes; those of one
            connection may have half of it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_connection_bytes = max(1, max_bytes // _CONNECTION_SHARE)
        self._connections: dict[str, int] = {}
        self._waiting: dict[str, asyncio.Event] = {}
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
        unread = self._connections.get(peer(), 0)
        if unread >= self._max_connection_bytes:
            raise ResourceExhausted(
                f"{unread} bytes of replies on this connection wait to be read by their caller",
                reason="REPLIES_UNREAD",
                retry_after_seconds=_RETRY_SECONDS,
            )
        if self.size_bytes >= self._max_bytes:
            raise Unavailable(
                f"{self.size_bytes} bytes of replies wait to be read by their callers",
                reason="REPLIES_UNREAD",
                retry_after_seconds=_RETRY_SECONDS,
            )

    async def room_on(self, connection: str) -> None:
        """Waits until more replies may be made for a connection."""
        while self._connections.get(connection, 0) >= self._max_connection_bytes:
            await self._waiting.setdefault(connection, asyncio.Event()).wait()

    def hold(self, connection: str, size_bytes: int) -> None:
        """Counts a reply that the transport has, or will be given."""
        self.size_bytes += size_bytes
        self._connections[connection] = self._connections.get(connection, 0) + size_bytes

    def release(self, connection: str, size_bytes: int) -> None:
        """Counts a reply no more: it has gone, or nobody waits for it."""
        self.size_bytes -= size_bytes
        rest = self._connections.pop(connection, 0) - size_bytes
        if rest:
            self._connections[connection] = rest
        if rest < self._max_connection_bytes and connection in self._waiting:
            self._waiting.pop(connection).set()
