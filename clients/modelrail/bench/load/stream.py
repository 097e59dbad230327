"""Many requests on one ModelStreamInfer call."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from modelrail.bench.load.reason import reason_of
from modelrail.bench.measurement.failure import STREAM_ERROR, RequestFailed
from modelrail.oip.v2 import grpc_service_pb2 as pb

__all__ = ["RequestStream"]

_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_ID_FIELD = b"\x1a"  # field 3 of ModelInferRequest, length-delimited
_FINAL = "triton_final_response"


@dataclass(slots=True, eq=False)
class _Pending:
    body: bytes
    answered: asyncio.Future[None]
    expires: float
    """Time of the event loop."""


class RequestStream:
    """A stream that is opened with the first request, and anew with the next one when it broke.

    A request is answered by the reply with its id that is marked as the last one, or carries no
    such mark. Replies without ids are taken in the order of the requests.

    Args:
        channel: Where to open the stream.
        metadata: What the call carries to say who is calling.
    """

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            _METHOD
        )
        self._metadata = metadata
        self._loop = asyncio.get_running_loop()
        self._connected: _Connected | None = None
        self._number = 0

    async def send(self, body: bytes, timeout_seconds: float) -> None:
        """Sends one request and returns when it is answered.

        Args:
            body: A ModelInferRequest without an id.
            timeout_seconds: Deadline of the request.

        Raises:
            RequestFailed: The reply is an error message (STREAM_ERROR), the stream broke (its
                status), or the time was over (DEADLINE_EXCEEDED).
        """
        if self._connected is None or self._connected.is_over:
            self._connected = _Connected(self._method(metadata=self._metadata), self._loop)
        self._number += 1
        name = str(self._number)
        # A field may stand anywhere in a message, so the id is put behind what is encoded already.
        encoded = name.encode()
        pending = _Pending(
            b"".join((body, _ID_FIELD, bytes((len(encoded),)), encoded)),
            self._loop.create_future(),
            self._loop.time() + timeout_seconds,
        )
        self._connected.put(name, pending)
        await pending.answered

    async def aclose(self) -> None:
        """Breaks the stream off; requests in flight fail with CANCELLED."""
        if self._connected is not None:
            await self._connected.aclose()


class _Connected:
    """One call, from its opening to its end."""

    def __init__(
        self, call: grpc.aio.StreamStreamCall[bytes, bytes], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._call = call
        self._loop = loop
        self._pending: dict[str, _Pending] = {}
        """In the order of sending. What has expired stays until its reply, to keep the order."""
        self._unwritten: deque[_Pending] = deque()
        self._wake = asyncio.Event()
        self._reaper: asyncio.TimerHandle | None = None
        self.is_over = False
        self._writer = loop.create_task(self._write())
        self._reader = loop.create_task(self._read())

    def put(self, name: str, pending: _Pending) -> None:
        """Sends a request when those before it are written."""
        self._pending[name] = pending
        self._unwritten.append(pending)
        self._wake.set()
        if self._reaper is None:
            self._reaper = self._loop.call_at(pending.expires, self._expire)

    async def aclose(self) -> None:
        """Breaks the call off."""
        self._call.cancel()
        self._writer.cancel()
        await asyncio.wait([self._writer, self._reader])

    async def _write(self) -> None:
        try:
            while True:
                while self._unwritten:
                    pending = self._unwritten.popleft()
                    if not pending.answered.done():
                        await self._call.write(pending.body)
                self._wake.clear()
                await self._wake.wait()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            pass  # The call has ended; the reading side knows why.

    async def _read(self) -> None:
        code, message, reason = "CANCELLED", "the stream was broken off", ""
        try:
            # What is read is bytes until the stream's end, which is another object.
            while isinstance(raw := await self._call.read(), bytes):
                self._take(raw)
            status = await self._call.code()
            code = status.name
            message = await self._call.details() or ""
            reason = reason_of(await self._call.trailing_metadata())
            if status is grpc.StatusCode.OK:
                code, message = STREAM_ERROR, "the server ended the stream"
        except grpc.aio.AioRpcError as error:
            code, message = error.code().name, error.details() or ""
            reason = reason_of(error.trailing_metadata())
        except DecodeError as error:
            code, message = STREAM_ERROR, f"a reply is no ModelStreamInferResponse: {error}"
            self._call.cancel()
        finally:
            self.is_over = True
            self._writer.cancel()
            if self._reaper is not None:
                self._reaper.cancel()
            for pending in self._pending.values():
                _fail(pending, code, message, reason)
            self._pending.clear()

    def _take(self, raw: bytes) -> None:
        reply = pb.ModelStreamInferResponse.FromString(raw)
        response = reply.infer_response
        if reply.error_message == "":
            final = response.parameters.get(_FINAL)
            if final is not None and not final.bool_param:
                return
        name = response.id or next(iter(self._pending), "")
        pending = self._pending.pop(name, None)
        if pending is None:
            return  # An id that was never sent, or one more reply after the last one.
        if reply.error_message:
            _fail(pending, STREAM_ERROR, reply.error_message)
        elif not pending.answered.done():
            pending.answered.set_result(None)

    def _expire(self) -> None:
        now = self._loop.time()
        self._reaper = None
        for pending in self._pending.values():
            if pending.answered.done():
                continue
            if pending.expires > now:
                self._reaper = self._loop.call_at(pending.expires, self._expire)
                return
            _fail(pending, "DEADLINE_EXCEEDED", "no reply on the stream before the deadline")


def _fail(pending: _Pending, code: str, message: str, reason: str = "") -> None:
    if not pending.answered.done():
        pending.answered.set_exception(RequestFailed(code, message, reason))
