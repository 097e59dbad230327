"""Where every RPC begins: identity, policy and request id, before its message is read.

gRPC asks one generic handler for the method of each call. `Dispatcher.service` is a plain function:
it knows path and metadata, and a caller without permission is refused there, so that its request
never gets into memory. gRPC then runs the handler that it returns in the same task, hence in the
same context, with the message.

What is the same for every call of a method (counters, parser, wrapped handler) is made once, when
the server starts: this is the hot path of an inference server.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import grpc
import structlog

from modelrail_server.access.api_keys import ApiKeys
from modelrail_server.context import Call, Context, enter_call
from modelrail_server.errors import (
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unimplemented,
)
from modelrail_server.observability.metrics import ServerMetrics
from modelrail_server.policy import ANONYMOUS, OWNER, Identity, Permission, Policy
from modelrail_server.rpc.handlers import Outcome, wrap_handler
from modelrail_server.rpc.methods import Handler, MethodTable, is_left_out

__all__ = ["MAX_PUBLIC_REQUEST_BYTES", "Dispatcher"]

MAX_PUBLIC_REQUEST_BYTES = 4096
"""Largest request of a caller who needs no key or takes no place, in bytes."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_RETRY_SECONDS = 1.0
_AUTHORIZATION = "authorization"
_X_REQUEST_ID = "x-request-id"

_log = structlog.get_logger()


class _Row(NamedTuple):
    """A row of the policy table with what serves it."""

    permission: Permission
    identity: Identity | None
    """The caller, where credentials are not looked at; None where the keys decide."""
    handler: Handler | None
    """None for a method that the policy knows and that nobody serves."""
    takes_place: bool
    """Whether its calls are counted, and refused while as many run as may."""


class Dispatcher(grpc.GenericRpcHandler):
    """Finds the handler of every RPC of a server; nothing is served past it.

    Args:
        service: Short name of the service, for the domain of errors.
        policy: One row for each RPC; no row means no.
        methods: The handlers of all services.
        metrics: Counters.
        raw_methods: Paths of the methods whose servicers take and give bytes. They are called so
            often that they tell their request id only to callers that sent one, or met an error.
        request_limits: Largest request in bytes of the methods that take less than the others, by
            path. Public methods, and those always answered, take `MAX_PUBLIC_REQUEST_BYTES` at
            most: nothing else bounds what their callers have parsed here.
        keys: Keys of the callers; None lets everybody be the owner.
        max_calls: Calls at a time; more are refused, with the time to come again.
        always_answered: Paths of the methods that are answered then too, beside the public ones:
            they are short, and tell callers how the server is.

    Raises:
        ValueError: A raw method, or one always answered, is not served, or has no row.
    """

    def __init__(
        self,
        *,
        service: str,
        policy: Policy,
        methods: MethodTable,
        metrics: ServerMetrics,
        raw_methods: Collection[str] = (),
        request_limits: Mapping[str, int] | None = None,
        keys: ApiKeys | None = None,
        max_calls: int,
        always_answered: Collection[str] = (),
    ) -> None:
        self._domain = f"modelrail.{service}"
        self._methods = methods
        self._metrics = metrics
        self._keys = keys
        self._max_calls = max_calls
        self._calls = 0
        self._raw_methods = frozenset(raw_methods)
        self._rows: dict[str, _Row] = {}
        for path, permission in policy.items():
            found = methods.find(path)
            handler = None
            takes_place = permission is not Permission.PUBLIC and path not in always_answered
            if found is not None and not is_left_out(found):
                limit = (request_limits or {}).get(path)
                if not takes_place:
                    limit = min(limit or MAX_PUBLIC_REQUEST_BYTES, MAX_PUBLIC_REQUEST_BYTES)
                handler = wrap_handler(
                    found,
                    self._outcome(path),
                    raw=path in raw_methods,
                    max_request_bytes=limit,
                )
            identity = self._known_identity(permission)
            self._rows[path] = _Row(permission, identity, handler, takes_place)
        for kind, paths in (("raw", raw_methods), ("always answered", always_answered)):
            for path in paths:
                row = self._rows.get(path)
                if row is None or row.handler is None:
                    raise ValueError(
                        f"expected a method that is served, got the {kind} method {path!r}"
                    )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Identifies the caller and returns the wrapped handler, or one that refuses the call."""
        path = handler_call_details.method
        authorization = sent_id = None
        for name, value in handler_call_details.invocation_metadata:
            if name == _AUTHORIZATION:
                authorization = value
            elif name == _X_REQUEST_ID:
                sent_id = value
        request_id = sent_id
        if not isinstance(request_id, str) or _REQUEST_ID.fullmatch(request_id) is None:
            request_id = os.urandom(16).hex()
        echoes_id = sent_id is not None or path not in self._raw_methods
        call = Call(path, request_id, ANONYMOUS, echoes_id=echoes_id)
        enter_call(call)

        row = self._rows.get(path)
        try:
            if row is None:
                raise self._without_row(path, authorization)
            identity = row.identity
            if identity is None:
                identity = self._permitted(row.permission, authorization)
            call.identity = identity
            if row.handler is None:
                raise _unimplemented()
            if row.takes_place:
                self._take_place()
        except ServiceError as error:
            return self._refusal(error, None if row is None else path)
        return row.handler

    def _take_place(self) -> None:
        """Counts a call until its task ends, be it before its message has come."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("the dispatcher ran outside of a call")
        if self._calls >= self._max_calls:
            self._metrics.turned_away += 1
            raise ResourceExhausted(
                f"this server answers {self._max_calls} calls at a time, and has as many",
                reason="TOO_MANY_CALLS",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._calls += 1
        task.add_done_callback(self._leave_place)

    def _leave_place(self, task: asyncio.Task[Any]) -> None:
        self._calls -= 1

    def _known_identity(self, permission: Permission) -> Identity | None:
        if permission is Permission.PUBLIC:
            return ANONYMOUS
        return OWNER if self._keys is None else None

    def _permitted(self, permission: Permission, authorization: object) -> Identity:
        """Returns the caller, who may do this."""
        identity = self._authenticate(authorization)
        if permission not in identity.permissions:
            self._metrics.refused("PERMISSION_DENIED")
            raise PermissionDenied(
                f"this call needs the permission {permission.value!r}", permission=permission.value
            )
        return identity

    def _authenticate(self, authorization: object) -> Identity:
        if self._keys is None:
            return OWNER
        try:
            return self._keys.authenticate(authorization)
        except Unauthenticated as error:
            self._metrics.refused(error.reason)
            raise

    def _without_row(self, path: str, authorization: object) -> ServiceError:
        """Returns what a caller with good credentials is told of a path that nobody may call.

        Permission comes before existence.
        """
        self._authenticate(authorization)
        if self._methods.find(path) is None:
            return _unimplemented()
        # A method that is served but has no row is a mistake of ours, which must not become a hole.
        _log.error("rpc without a row in the policy table is denied", rpc=path)
        self._metrics.refused("NO_POLICY")
        return PermissionDenied("this call is not allowed to anybody", reason="NO_POLICY")

    def _outcome(self, path: str | None) -> Outcome:
        metrics = self._metrics
        return Outcome(self._domain, metrics.method(path) if path else metrics.unknown)

    def _refusal(self, error: ServiceError, path: str | None) -> Handler:
        """Returns a handler that answers without reading a message, for methods of any kind."""
        outcome = self._outcome(path)

        async def refuse(requests: object, context: Context) -> Any:
            await outcome.refuse(error, context)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _unimplemented() -> Unimplemented:
    return Unimplemented("this server has no such method", reason="UNKNOWN_METHOD")
