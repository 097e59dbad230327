"""The boundary between the chassis and a service: what each hands to the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc.aio
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from prometheus_client import CollectorRegistry

from modelrail_server.observability.metrics import ServerMetrics
from modelrail_server.policy import Policy
from modelrail_server.standard.health import Health
from modelrail_server.supervision.link import Link
from modelrail_server.supervision.parts import PartsSink

__all__ = ["Application", "Runtime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """A service, ready to be served."""

    register: Callable[[grpc.aio.Server], None]
    """Adds the servicers, by generated code, to what stands there for the server."""
    services: tuple[str, ...]
    """Full names of the services, for health and reflection."""
    policy: Policy
    """One row for each RPC; an RPC without a row is denied."""
    descriptors: tuple[FileDescriptor | FileDescriptorProto, ...] = ()
    """The services' proto files as reflection shall show them; what they import is added by itself
    unless a file of that name is given here."""
    raw_methods: frozenset[str] = frozenset()
    """Paths of the methods whose servicers take and give bytes in place of messages; malformed ones
    are theirs to refuse, with `message_parser` of `rpc/handlers.py`."""
    always_answered: frozenset[str] = frozenset()
    """Paths of the methods that are answered, beside the public ones, while as many calls run as
    may: short ones, such as readiness and metadata. Like public ones they take requests of at most
    `MAX_PUBLIC_REQUEST_BYTES` of `rpc/dispatcher.py`."""
    request_limits: Mapping[str, int] = field(default_factory=dict)
    """Largest request in bytes of the methods that take less than `max_message_bytes`, by path.
    Larger ones are refused before they are parsed: of some messages that takes 30 times their size
    in memory."""
    close_streams: asyncio.Event | None = None
    """Set together with `Runtime.stopping`, for services that own such an event already."""


class Runtime:
    """What the chassis offers to the service that it runs.

    Args:
        service: Short name (`registry`), which ends the domain of errors and labels logs.
    """

    def __init__(self, service: str = "server") -> None:
        self.service = service
        self.health = Health()
        """What callers are told. The names of the services and `""` are set by the chassis."""
        self.metrics = CollectorRegistry()
        """Everything that the metrics address shows."""
        self.stopping = asyncio.Event()
        """Set after the drain delay: watch streams end now, so that callers reconnect elsewhere."""
        self.server_metrics = ServerMetrics(self.metrics)
        self.link: Link | None = None
        """How a worker reaches its siblings; None: this process is the whole server."""

    @property
    def parts(self) -> PartsSink:
        """Where the service says of its parts, like `infer/digits`, whether they serve."""
        return self.health if self.link is None else self.link.parts
