"""Method handlers of grpc.aio with parsing, errors, metrics and logs around the servicer's method.

The request is parsed here rather than by gRPC, which answers bytes that are no message with
INTERNAL; they are the caller's mistake. Servicers therefore read request streams through their
iterator: `context.read()` would return bytes. A servicer that takes bytes parses them by itself.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from time import perf_counter
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from modelrail_server.context import Call, Context, current_call
from modelrail_server.errors import InvalidArgument, ResourceExhausted, ServiceError
from modelrail_server.observability.metrics import MethodMetrics
from modelrail_server.rpc.methods import Handler
from modelrail_server.rpc.status import Reply, code_of, internal_reply, reply_to

__all__ = ["Outcome", "message_parser", "wrap_handler"]

_Parser = Callable[[bytes], Any]

_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
# Mistakes of the caller and states that it is told about; the rest is for whoever runs the server.
_SERVER_FAULTS = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNKNOWN}
)

_log = structlog.get_logger()


class Outcome:
    """How the calls of one method begin and end.

    Args:
        domain: Domain of the errors, like `modelrail.registry`.
        metrics: Counters of the method.
    """

    def __init__(self, domain: str, metrics: MethodMetrics) -> None:
        self._domain = domain
        self._metrics = metrics

    def begin(self, context: Context) -> Call:
        """Counts the call, and makes it answer with its request id where the dispatcher says so."""
        call = current_call()
        if call is None:
            raise RuntimeError("a handler ran outside of the dispatcher")
        call.context = context
        if call.echoes_id:
            context.set_trailing_metadata((("x-request-id", call.request_id),))
        self._metrics.started += 1
        return call

    def succeed(self, context: Context, began: float) -> None:
        """Counts a call whose handler returned; it may have set a code of its own."""
        self._metrics.handled(_code_name(context, "OK"), perf_counter() - began)

    async def refuse(self, error: ServiceError, context: Context) -> NoReturn:
        """Ends a call that no servicer saw."""
        began = perf_counter()
        await self.fail(error, context, self.begin(context), began)

    async def fail(
        self, error: BaseException, context: Context, call: Call, began: float
    ) -> NoReturn:
        """Ends a call whose handler raised: answers, counts and logs it, then raises."""
        try:
            if isinstance(error, grpc.aio.AbortError):
                # The servicer has answered by itself.
                self._metrics.handled(_code_name(context, "UNKNOWN"), perf_counter() - began)
                raise error
            if _is_gone(error, context):
                self._metrics.handled(_gone_code(context), perf_counter() - began)
                raise error if isinstance(error, asyncio.CancelledError) else asyncio.CancelledError
            reply = self._reply(error, call)
            self._metrics.handled(reply.code.name, perf_counter() - began)
            await context.abort(reply.code, reply.message, reply.trailers)
        finally:
            # An error that is raised here holds this frame, and with it the handler's, whose
            # messages would stay until the garbage collector comes by.
            del error

    def _reply(self, error: BaseException, call: Call) -> Reply:
        told = _service_error(error)
        if told is None:
            _log.error("rpc failed", code="INTERNAL", exc_info=error)
            return internal_reply(domain=self._domain, request_id=call.request_id)
        try:
            reply = reply_to(told, domain=self._domain, request_id=call.request_id)
        except Exception as defect:  # noqa: BLE001 an error that cannot be told is a defect like any other
            _log.error("rpc failed", code="INTERNAL", exc_info=defect)
            return internal_reply(domain=self._domain, request_id=call.request_id)
        if code_of(type(told)) in _SERVER_FAULTS:
            _log.error("rpc failed", code=reply.code.name, reason=told.reason, exc_info=error)
        else:
            _log.info("rpc failed", code=reply.code.name, reason=told.reason, message=reply.message)
        return reply


def _code_name(context: Context, unset: str) -> str:
    """Returns the name of the code that the servicer set, which gRPC has as number or enum."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _NAMES.get(code, "UNKNOWN") if code else unset


def _is_gone(error: BaseException, context: Context) -> bool:
    """Whether the caller went away, its deadline passed, or the server stops.

    A CancelledError that nobody asked this task for comes from something that the servicer waited
    for. gRPC would answer nothing, and the caller would wait for its deadline.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return context.cancelled() or (task is not None and task.cancelling() > 0)
    # Writing to a stream whose other end is gone.
    return isinstance(error, grpc.aio.InternalError | grpc.aio.UsageError) and context.cancelled()


def _gone_code(context: Context) -> str:
    remaining = context.time_remaining()
    return "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"


def _service_error(error: BaseException) -> ServiceError | None:
    """Returns what the caller is told; None for a defect.

    A TaskGroup in a servicer wraps the error: the first of a group in which all are ours is told.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, BaseExceptionGroup):
        told, defects = error.split(ServiceError)
        if told is not None and defects is None:
            return _service_error(told.exceptions[0])
    return None


def wrap_handler(
    handler: Handler,
    outcome: Outcome,
    *,
    raw: bool = False,
    max_request_bytes: int | None = None,
) -> Handler:
    """Returns a handler that does what `handler` does, with `outcome` around it.

    Args:
        handler: What the service registered.
        outcome: Begins and ends the calls.
        raw: The servicer takes and gives bytes: neither deserializer nor serializer is used.
        max_request_bytes: Larger messages are refused before they are parsed; None: what gRPC lets
            through is parsed.

    Raises:
        TypeError: The method is neither a coroutine function nor an asynchronous generator.
    """
    deserializer = None if raw else handler.request_deserializer
    serialize = None if raw else handler.response_serializer
    parse = None if deserializer is None else message_parser(deserializer)
    if max_request_bytes is not None:
        parse = _limited(parse, max_request_bytes)
    if not handler.response_streaming:
        if handler.request_streaming:
            method = _single(handler.stream_unary, _stream_parser(parse), outcome)
            return grpc.stream_unary_rpc_method_handler(method, None, serialize)
        method = _single(handler.unary_unary, parse, outcome)
        return grpc.unary_unary_rpc_method_handler(method, None, serialize)
    if handler.request_streaming:
        method = _stream(handler.stream_stream, _stream_parser(parse), outcome)
        return grpc.stream_stream_rpc_method_handler(method, None, serialize)
    method = _stream(handler.unary_stream, parse, outcome)
    return grpc.unary_stream_rpc_method_handler(method, None, serialize)


def message_parser(deserializer: _Parser) -> _Parser:
    """Returns what parses a message and raises InvalidArgument for bytes that are none.

    Args:
        deserializer: `FromString` of the message's class.
    """

    def parse(raw: bytes) -> Any:
        try:
            return deserializer(raw)
        except (DecodeError, ValueError):
            raise InvalidArgument(
                "the request is not a message of the expected type", reason="MALFORMED_MESSAGE"
            ) from None

    return parse


def _limited(parse: _Parser | None, most_bytes: int) -> _Parser:
    """Returns what refuses messages of more than `most_bytes`, and parses the others."""

    def parse_small(raw: bytes) -> Any:
        if len(raw) > most_bytes:
            raise ResourceExhausted(
                f"this method takes requests of at most {most_bytes} bytes, got {len(raw)}",
                reason="REQUEST_TOO_LARGE",
            )
        return raw if parse is None else parse(raw)

    return parse_small


def _stream_parser(parse: _Parser | None) -> Callable[[AsyncIterator[bytes]], Any] | None:
    if parse is None:
        return None

    async def parse_each(raw_requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for raw in raw_requests:
            yield parse(raw)

    return parse_each


def _single(behavior: Any, parse: Callable[[Any], Any] | None, outcome: Outcome) -> Any:
    """Wraps a method that answers once."""
    if not inspect.iscoroutinefunction(behavior):
        raise TypeError(f"{behavior} is not a coroutine function")

    async def handle(request: Any, context: Context) -> Any:
        began = perf_counter()
        call = outcome.begin(context)
        try:
            if parse is not None:
                request = parse(request)
            response = await behavior(request, context)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 fail() tells them apart
            await outcome.fail(error, context, call, began)
        outcome.succeed(context, began)
        return response

    return handle


def _stream(behavior: Any, parse: Callable[[Any], Any] | None, outcome: Outcome) -> Any:
    """Wraps a method that answers many times: a generator, or a coroutine that writes."""
    generates = inspect.isasyncgenfunction(behavior)
    if not generates and not inspect.iscoroutinefunction(behavior):
        raise TypeError(f"{behavior} is neither a coroutine function nor an asynchronous generator")

    async def handle(request: Any, context: Context) -> None:
        began = perf_counter()
        call = outcome.begin(context)
        try:
            if parse is not None:
                request = parse(request)
            if generates:
                # Closed here and now, so that the servicer's `finally` runs when the caller leaves,
                # not when the garbage collector comes by.
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)
            else:
                await behavior(request, context)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 fail() tells them apart
            await outcome.fail(error, context, call, began)
        outcome.succeed(context, began)

    return handle
