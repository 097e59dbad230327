"""Server streams that survive the server: they are opened again where they broke off."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc.aio

from modelrail.client.backoff import Backoff, is_transient
from modelrail.client.errors import ModelrailError, mapped_errors

_Response = TypeVar("_Response")


async def follow(
    open_stream: Callable[[], grpc.aio.UnaryStreamCall[Any, _Response]],
    *,
    has_ended: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[_Response, None]:
    """Yields the responses of one stream after another.

    Args:
        open_stream: Opens a stream that starts after the last response that was yielded.
        has_ended: Asked whenever a stream ends well: whether nothing more can come. A stream also
            ends well when the server stops, so the end alone says nothing.

    Raises:
        ModelrailError: A stream failed in a way that opening it again cannot cure.
    """
    backoff = Backoff()
    while True:
        failure: ModelrailError | None = None
        call = open_stream()
        try:
            with mapped_errors():
                async for response in call:
                    backoff.reset()
                    yield response
            if await has_ended():
                return
        except ModelrailError as error:
            if not is_transient(error):
                raise
            failure = error
        finally:
            call.cancel()
        await backoff.wait(failure)
