"""What the clients of all services share: the channel, the deadlines and the error mapping."""

from __future__ import annotations

import copy
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Protocol, Self, TypeVar

import grpc.aio

from modelrail.client.channel import Connection, open_channel
from modelrail.client.errors import mapped_errors

__all__ = ["DEFAULT_TIMEOUT_SECONDS", "ServiceClient"]

DEFAULT_TIMEOUT_SECONDS = 10.0

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class _Page(Protocol):
    next_page_token: str


_P = TypeVar("_P", bound=_Page)
_Item = TypeVar("_Item")


class ServiceClient:
    """An async context manager that owns a channel, or borrows the one that it is given.

    Make it inside a running event loop.

    Args:
        connection: Where the server is, or just its address.
        timeout_seconds: Deadline of every call that does not name its own.
        channel: A channel to use instead of an own one; it is not closed.
    """

    def __init__(
        self,
        connection: Connection | str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds: expected more than 0, got {timeout_seconds}")
        self.connection = Connection.of(connection)
        self.timeout_seconds = timeout_seconds
        self._owns_channel = channel is None
        self._channel = open_channel(self.connection) if channel is None else channel
        self._metadata = self.connection.call_metadata

    def with_timeout(self, timeout_seconds: float) -> Self:
        """Returns a client with another deadline on the same channel, which it never closes."""
        twin = copy.copy(self)
        twin.timeout_seconds = timeout_seconds
        twin._owns_channel = False
        return twin

    async def aclose(self) -> None:
        """Breaks off the calls in flight and closes the channel."""
        if self._owns_channel:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection.address!r})"

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout_seconds: float | None = None,
    ) -> _Response:
        with mapped_errors():
            return await method(
                request,
                timeout=self.timeout_seconds if timeout_seconds is None else timeout_seconds,
                metadata=self._metadata,
            )

    async def _pages(
        self, fetch: Callable[[str], Awaitable[_P]], items: Callable[[_P], Iterable[_Item]]
    ) -> AsyncIterator[_Item]:
        """Follows `next_page_token` from page to page, each with its own deadline."""
        page_token = ""
        while True:
            page = await fetch(page_token)
            for item in items(page):
                yield item
            page_token = page.next_page_token
            if not page_token:
                return


def new_request_id() -> str:
    """Returns an id that makes a mutation safe to repeat."""
    return str(uuid.uuid4())
