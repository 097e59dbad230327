"""The one interceptor: identity, policy, request id, errors, metrics and logs of every RPC.

It works in two steps, because gRPC does. `intercept_service` knows path and metadata before
the first message is read: a caller without permission is refused there, and its request never
gets into memory. The wrapped handler then runs in the same task, with the message.

What is the same for every call of a method (counters, parser, wrapped handler) is made once and
kept: this is the hot path of an inference server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog

from modelrail_server.access.api_keys import ApiKeys
from modelrail_server.context import Call, enter_call
from modelrail_server.errors import (
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    Unimplemented,
)
from modelrail_server.observability.metrics import ServerMetrics
from modelrail_server.policy import ANONYMOUS, OWNER, Identity, Permission, Policy
from modelrail_server.rpc.handlers import Outcome, wrap_handler

__all__ = ["RpcInterceptor"]

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]
else:
    # The class is generic only in its type stubs.
    _Handler = grpc.RpcMethodHandler

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_AUTHORIZATION = "authorization"
_X_REQUEST_ID = "x-request-id"

_log = structlog.get_logger()


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Stands around every RPC of a server.

    Args:
        service: Short name of the service, for the domain of errors.
        policy: One row for each RPC; no row means no.
        metrics: Counters.
        keys: Keys of the callers; None lets everybody be the owner.
    """

    def __init__(
        self, *, service: str, policy: Policy, metrics: ServerMetrics, keys: ApiKeys | None = None
    ) -> None:
        self._domain = f"modelrail.{service}"
        self._policy = dict(policy)
        self._metrics = metrics
        self._keys = keys
        self._handlers: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Identifies the caller and returns the wrapped handler, or one that refuses the call."""
        method = handler_call_details.method
        authorization = sent_id = None
        for name, value in handler_call_details.invocation_metadata:
            if name == _AUTHORIZATION:
                authorization = value
            elif name == _X_REQUEST_ID:
                sent_id = value
        if not isinstance(sent_id, str) or _REQUEST_ID.fullmatch(sent_id) is None:
            sent_id = os.urandom(16).hex()
        call = Call(method, sent_id, ANONYMOUS)
        enter_call(call)

        permission = self._policy.get(method)
        try:
            call.identity = self._identify(permission, authorization)
            if permission not in call.identity.permissions:
                await self._refuse(method, permission, continuation, handler_call_details)
        except ServiceError as error:
            return self._refusal(error, method if permission else None)
        handler = self._handlers.get(method)
        if handler is None:
            found = await continuation(handler_call_details)
            if found is None:
                return self._refusal(_unimplemented(), method)
            handler = wrap_handler(found, self._outcome(method))
            # Only paths of the policy table get here, so this cannot grow without bound.
            self._handlers[method] = handler
        return handler

    def _identify(self, permission: Permission | None, authorization: object) -> Identity:
        if permission is Permission.PUBLIC:
            return ANONYMOUS
        if self._keys is None:
            return OWNER
        try:
            return self._keys.authenticate(authorization)
        except Unauthenticated as error:
            self._metrics.refused(error.reason)
            raise

    async def _refuse(
        self,
        method: str,
        permission: Permission | None,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> None:
        """Raises what a caller with good credentials is told. Permission comes before existence."""
        if permission is not None:
            self._metrics.refused("PERMISSION_DENIED")
            raise PermissionDenied(
                f"this call needs the permission {permission.value!r}", permission=permission.value
            )
        if await continuation(details) is None:
            raise _unimplemented()
        # A method that is served but has no row is a mistake of ours, which must not become a hole.
        _log.error("rpc without a row in the policy table is denied", rpc=method)
        self._metrics.refused("NO_POLICY")
        raise PermissionDenied("this call is not allowed to anybody", reason="NO_POLICY")

    def _outcome(self, method: str | None) -> Outcome:
        metrics = self._metrics
        return Outcome(self._domain, metrics.method(method) if method else metrics.unknown)

    def _refusal(self, error: ServiceError, method: str | None) -> _Handler:
        """Returns a handler that answers without reading a message, for methods of any kind."""
        outcome = self._outcome(method)

        async def refuse(requests: object, context: Any) -> None:
            await outcome.refuse(error, context)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _unimplemented() -> Unimplemented:
    return Unimplemented("this server has no such method", reason="UNKNOWN_METHOD")
