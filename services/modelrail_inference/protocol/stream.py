"""Many requests on one stream: answered in order, a bounded number of them in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail_inference.protocol.convert import stream_error_to_pb
from modelrail_server.errors import ServiceError, Unavailable

Answer = Callable[[pb.ModelInferRequest], Awaitable[pb.ModelStreamInferResponse]]
_Answers = asyncio.Queue["asyncio.Task[pb.ModelStreamInferResponse] | None"]


async def answer_stream(
    requests: AsyncIterator[pb.ModelInferRequest],
    answer: Answer,
    *,
    max_in_flight: int,
    stopping: asyncio.Event,
    end_on_error: bool,
) -> AsyncIterator[pb.ModelStreamInferResponse]:
    """Answers the requests of a stream in their order.

    The reader stops reading while `max_in_flight` requests are unanswered, so that flow control
    slows the caller down and nothing piles up here.

    Args:
        requests: What the caller sends, until it half-closes.
        answer: Answers one request.
        max_in_flight: Requests at a time.
        stopping: Ends the stream, after the answers in flight, when set.
        end_on_error: The first error ends the stream, in place of a message on it.

    Yields:
        One response for each request. An error is a response too, which carries the request's id.

    Raises:
        Unavailable: The server stops.
        ServiceError: With `end_on_error`, the first error.
    """
    answers: _Answers = asyncio.Queue()
    room = asyncio.Semaphore(max_in_flight)
    tasks: set[asyncio.Task[pb.ModelStreamInferResponse]] = set()

    async def one(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        try:
            return await answer(request)
        except ServiceError as error:
            if end_on_error:
                raise
            return stream_error_to_pb(request, error.message)

    async def read() -> None:
        try:
            while True:
                await room.acquire()
                request = await anext(requests, None)
                if request is None:
                    return
                task = asyncio.create_task(one(request))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                # Unbounded as an object, bounded by the semaphore: a put never waits.
                answers.put_nowait(task)
        finally:
            answers.put_nowait(None)

    reader = asyncio.create_task(read())
    stopper = asyncio.create_task(_cancel_when(stopping, reader))
    try:
        while (task := await answers.get()) is not None:
            yield await task
            room.release()
        if stopping.is_set():
            raise Unavailable("Server exiting", reason="SERVER_EXITING")
        await reader  # raises what reading raised
    finally:
        running = [reader, stopper, *tasks]
        for left in running:
            left.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _cancel_when(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    await event.wait()
    with suppress(asyncio.CancelledError):
        task.cancel()
