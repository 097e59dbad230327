"""The method handlers of the services, as generated code registers them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

__all__ = ["Handler", "MethodTable", "is_left_out"]

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    # The class is generic only in its type stubs.
    Handler = grpc.RpcMethodHandler


class _Details(NamedTuple):
    """What a generic handler is asked with when nobody has called yet."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


class MethodTable:
    """Takes a server's place where services register, so that their handlers can be wrapped.

    Generated code registers each method twice: through a generic handler and by its name. gRPC
    answers names without asking a generic handler, past identity and policy, and at each call it
    waits anew for every registered name at once; so the names stay here.
    """

    def __init__(self) -> None:
        self._generic: list[grpc.GenericRpcHandler] = []
        self._named: dict[str, Handler] = {}

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Adds handlers that are asked for a path."""
        self._generic.extend(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Handler]
    ) -> None:
        """Adds the methods of one service by their names."""
        for method, handler in method_handlers.items():
            self._named[f"/{service_name}/{method}"] = handler

    def find(self, path: str) -> Handler | None:
        """Returns the handler of `/package.Service/Method`; None if there is no such method."""
        found = self._named.get(path)
        for generic in self._generic:
            if found is not None:
                break
            found = generic.service(_Details(path))  # type: ignore[arg-type]
        return found


def is_left_out(handler: Handler) -> bool:
    """Whether the servicer has inherited a method from generated code, which only refuses."""
    behaviors = (
        handler.unary_unary,
        handler.unary_stream,
        handler.stream_unary,
        handler.stream_stream,
    )
    return any(
        (getattr(behavior, "__module__", None) or "").endswith("_pb2_grpc")
        for behavior in behaviors
        if behavior is not None
    )
