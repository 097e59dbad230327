"""Many requests on one stream: answered in order, a bounded number of them in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from modelrail_inference.dataplane import DataPlane
from modelrail_inference.protocol.wire import ReplyEncoder, RequestDecoder, encode_stream_error
from modelrail_inference.request.call import Call
from modelrail_inference.request.unread import CallReplies, UnreadReplies
from modelrail_inference.scheduling.queue.refusals import exiting
from modelrail_server.context import Context, identity
from modelrail_server.errors import ServiceError

Answer = Callable[[bytes], Awaitable[bytes]]
_Answers = asyncio.Queue["asyncio.Task[bytes] | None"]


class Streams:
    """Answers streams of requests.

    Args:
        dataplane: Answers one request.
        decoder: Reads requests.
        encoder: Writes replies.
        unread: Counts the replies that callers have not taken.
        max_in_flight: Requests in flight on one stream.
        stopping: Set when streams have to end.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        decoder: RequestDecoder,
        encoder: ReplyEncoder,
        unread: UnreadReplies,
        *,
        max_in_flight: int,
        stopping: asyncio.Event,
    ) -> None:
        self._dataplane = dataplane
        self._decoder = decoder
        self._encoder = encoder
        self._unread = unread
        self._max_in_flight = max_in_flight
        self._stopping = stopping

    def answer(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Answers one stream; its deadline and caller are those of every request on it.

        With the metadatum `triton_grpc_error: true` the first error ends the stream, as in Triton.
        """
        # Without its peer: what is unread on its connection keeps the stream from being read.
        call = Call.within(context.time_remaining(), identity=identity().name)

        async def answer(request: bytes) -> bytes:
            reply = await self._dataplane.infer(self._decoder.decode(request), call)
            return self._encoder.encode_on_stream(reply)

        metadata = dict(context.invocation_metadata() or ())
        return answer_stream(
            requests,
            answer,
            replies=self._unread.of_call(context.peer()),
            max_in_flight=self._max_in_flight,
            stopping=self._stopping,
            end_on_error=metadata.get("triton_grpc_error") == "true",
        )


async def answer_stream(
    requests: AsyncIterator[bytes],
    answer: Answer,
    *,
    replies: CallReplies,
    max_in_flight: int,
    stopping: asyncio.Event,
    end_on_error: bool,
) -> AsyncIterator[bytes]:
    """Answers the requests of a stream in their order.

    The reader stops reading while `max_in_flight` requests are unanswered, or too many replies on
    the connection unread, so that flow control slows the caller down and nothing piles up here.

    Args:
        requests: What the caller sends, serialised, until it half-closes.
        answer: Answers one request with a serialised response.
        replies: Counts the responses until they are taken; closed at the end.
        max_in_flight: Requests at a time.
        stopping: Ends the stream, after the answers in flight, when set.
        end_on_error: The first error ends the stream, in place of a message on it.

    Yields:
        One response for each request. An error is a response too, which carries the request's id,
        where it can be read.

    Raises:
        Unavailable: The server stops.
        ServiceError: With `end_on_error`, the first error.
    """
    answers: _Answers = asyncio.Queue()
    room = asyncio.Semaphore(max_in_flight)
    tasks: set[asyncio.Task[bytes]] = set()

    async def one(request: bytes) -> bytes:
        try:
            reply = await answer(request)
        except ServiceError as error:
            if end_on_error:
                raise
            reply = encode_stream_error(request, error.message)
        replies.hold(len(reply))
        return reply

    async def read() -> None:
        try:
            while True:
                await room.acquire()
                await replies.room()
                request = await anext(requests, None)
                if request is None:
                    return
                task = asyncio.create_task(one(request))
                tasks.add(task)
                # Unbounded as an object, bounded by the semaphore: a put never waits.
                answers.put_nowait(task)
        finally:
            answers.put_nowait(None)

    reader = asyncio.create_task(read())
    stopper = asyncio.create_task(_cancel_when(stopping, reader))
    try:
        while (task := await answers.get()) is not None:
            reply = await task
            tasks.discard(task)  # not before: what was never awaited is reported as a defect
            yield reply
            replies.taken(len(reply))
            room.release()
        if stopping.is_set():
            raise exiting()
        await reader  # raises what reading raised
    finally:
        try:
            await _end(reader, stopper, *tasks)
        finally:  # also when the call is cancelled meanwhile
            replies.close()
            # What reading or answering raised holds this frame: with its task still in it, both
            # would stay until the garbage collector comes by, and the messages with them.
            task = None
            tasks.clear()
            del reader, stopper


async def _end(*running: asyncio.Task[Any]) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def _cancel_when(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    await event.wait()
    with suppress(asyncio.CancelledError):
        task.cancel()
