"""What code anywhere below a servicer may know about the RPC it works for.

gRPC runs each RPC in a task of its own, so one context variable per RPC is enough, and tasks that a
servicer starts inherit it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from modelrail_server.policy import Identity

__all__ = ["Call", "Context", "current_call", "identity", "request_id", "time_remaining"]

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]
else:
    # For annotations only: processes that log without serving do without gRPC.
    Context = Any


class Call:
    """One RPC in flight, as the dispatcher sees it.

    Attributes:
        method: Path of the method.
        request_id: What logs and errors call it.
        echoes_id: Whether a good reply carries the id too; an error always does.
        identity: The caller.
        context: gRPC's, once the handler runs.
    """

    __slots__ = ("context", "echoes_id", "identity", "method", "request_id")

    def __init__(
        self, method: str, request_id: str, identity: Identity, *, echoes_id: bool = True
    ) -> None:
        self.method = method
        self.request_id = request_id
        self.echoes_id = echoes_id
        self.identity = identity
        self.context: Context | None = None


_call: ContextVar[Call | None] = ContextVar("modelrail_call", default=None)


def current_call() -> Call | None:
    """Returns the RPC that this code works for, or None outside of one."""
    return _call.get()


def enter_call(call: Call) -> None:
    """Makes `call` the current one for the rest of this task; only the dispatcher does that."""
    _call.set(call)


def request_id() -> str:
    """Returns the request id of the current RPC; empty outside of one."""
    call = _call.get()
    return "" if call is None else call.request_id


def identity() -> Identity:
    """Returns the caller of the current RPC.

    Raises:
        LookupError: There is no current RPC.
    """
    call = _call.get()
    if call is None:
        raise LookupError("there is no current RPC")
    return call.identity


def time_remaining() -> float | None:
    """Returns the seconds until the caller's deadline; None without one or outside of an RPC."""
    call = _call.get()
    if call is None or call.context is None:
        return None
    return call.context.time_remaining()
