"""The standard health service (`grpc.health.v1`).

It stands in for the servicer of grpcio-health-checking for three reasons: `set` is not a coroutine,
so that a caller cannot be overtaken by the next change; asking for names that nobody set leaves
nothing behind in memory; and `Watch` streams end when the server stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelrail_server.context import Context
from modelrail_server.errors import InvalidArgument, NotFound, ResourceExhausted
from modelrail_server.policy import Permission, Policy

__all__ = ["HEALTH_POLICY", "HEALTH_SERVICE", "MAX_WATCHES", "Health", "HealthServicer"]

HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
HEALTH_POLICY: Policy = {
    f"/{HEALTH_SERVICE}/Check": Permission.PUBLIC,
    f"/{HEALTH_SERVICE}/Watch": Permission.PUBLIC,
}

MAX_WATCHES = 256
"""`Watch` streams at a time, of all callers together."""
# Longer than `infer/` with the name of a folder.
_LONGEST_NAME = 300

_Status = health_pb2.HealthCheckResponse


class Health:
    """Which parts of the server answer requests. For the event loop's thread only."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._closed = False

    def set(self, name: str, serving: bool) -> None:
        """Says whether `name` serves: `""` (the process), a service, or a part: `infer/digits`."""
        self._serving[name] = serving
        self._notify()

    def remove(self, name: str) -> None:
        """Forgets `name`: asking for it is asking for something unknown again."""
        if self._serving.pop(name, None) is not None:
            self._notify()

    def drain(self) -> None:
        """Reports everything as not serving from now on, whatever is set later."""
        self._draining = True
        self._notify()

    def close(self) -> None:
        """Ends the `Watch` streams after their last change."""
        self._closed = True
        self._notify()

    def serving(self, name: str) -> bool | None:
        """Returns whether `name` serves; None if nobody ever set it."""
        serving = self._serving.get(name)
        return serving if serving is None else serving and not self._draining

    async def watch(self, name: str) -> AsyncGenerator[bool | None, None]:
        """Yields `serving(name)` now and after each change; one undone at once may be skipped."""
        last: object = self
        while True:
            # Taken before the state is read: a change between the two wakes the wait below.
            changed = self._changed
            state = self.serving(name)
            if state is not last:
                last = state
                yield state
            elif self._closed:
                return
            else:
                await changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class HealthServicer(health_pb2_grpc.HealthServicer):
    """`grpc.health.v1.Health` over a `Health`.

    Args:
        health: What is told.
        max_watches: `Watch` streams at a time, of all callers together: anybody may open them, they
            last as long as their callers like, and no place for calls bounds them. Without a cap
            they would fill what gRPC itself takes, past which it refuses everything, `Check` too.
    """

    def __init__(self, health: Health, *, max_watches: int = MAX_WATCHES) -> None:
        self._health = health
        self._max_watches = max_watches
        self._watches = 0

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answers the state of one name; NOT_FOUND for a name that nobody set."""
        serving = self._health.serving(request.service)
        if serving is None:
            raise NotFound("service: unknown name", reason="UNKNOWN_SERVICE")
        return _response(serving)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Streams the state of one name, SERVICE_UNKNOWN until somebody sets it.

        INVALID_ARGUMENT for a name that nothing can have; RESOURCE_EXHAUSTED when there are too
        many streams.
        """
        name = request.service
        # A stream may last for weeks.
        del request
        if len(name) > _LONGEST_NAME:
            raise InvalidArgument.field(
                "service", f"expected at most {_LONGEST_NAME} characters, got {len(name)}"
            )
        if self._watches >= self._max_watches:
            raise ResourceExhausted(
                f"this server takes at most {self._max_watches} Watch streams of health at a time;"
                " close some, or ask with Check",
                reason="TOO_MANY_WATCHES",
            )
        self._watches += 1
        try:
            async with aclosing(self._health.watch(name)) as states:
                async for serving in states:
                    yield _response(serving)
        finally:
            self._watches -= 1


def _response(serving: bool | None) -> health_pb2.HealthCheckResponse:
    if serving is None:
        return _Status(status=_Status.SERVICE_UNKNOWN)
    return _Status(status=_Status.SERVING if serving else _Status.NOT_SERVING)
