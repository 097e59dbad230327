"""Wires an application into a `grpc.aio` server: dispatcher, credentials, limits, health."""

from __future__ import annotations

from typing import cast

import grpc.aio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelrail_server.access.api_keys import ApiKeys
from modelrail_server.access.tls import server_credentials
from modelrail_server.address import Address, BindError
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ConfigError, ServerConfig
from modelrail_server.rpc.dispatcher import Dispatcher
from modelrail_server.rpc.methods import MethodTable
from modelrail_server.standard.health import (
    HEALTH_POLICY,
    HEALTH_SERVICE,
    MAX_WATCHES,
    HealthServicer,
)
from modelrail_server.standard.reflection import (
    REFLECTION_POLICY,
    REFLECTION_SERVICE,
    add_reflection,
)

__all__ = ["start_server"]

_NEVER_MILLISECONDS = 2**31 - 1
_BURSTS = 4
"""Times of `max_concurrent_rpcs` that may wait for the event loop to take them."""
_LAST_BOUND = 2
"""Times of `max_concurrent_rpcs` at which gRPC refuses everything, health too, and gives no reason.
Below it the dispatcher refuses, and answers what is always answered."""
_PROBES = 64
"""Calls more than these multiples, so that a small limit leaves room for probes."""


async def start_server(
    application: Application, config: ServerConfig, runtime: Runtime
) -> tuple[grpc.aio.Server, str]:
    """Starts a server, healthy from the first call on.

    Returns:
        The server, to be stopped by the caller, and the address with the port that was bound.

    Raises:
        ConfigError: The certificates or the keys cannot be used.
        BindError: The address cannot be listened on.
    """
    credentials = _credentials(config, runtime)
    server = grpc.aio.server(
        handlers=(_dispatcher(application, config, runtime),),
        options=_options(config, share_port=runtime.link is not None),
        maximum_concurrent_rpcs=_LAST_BOUND * config.max_concurrent_rpcs + _PROBES,
    )
    try:
        address = _bind(server, Address.parse(config.grpc_address), credentials)
        for name in ("", *application.services):
            runtime.health.set(name, True)
        await server.start()
    except BaseException:
        await server.stop(None)
        raise
    return server, str(address)


def _dispatcher(application: Application, config: ServerConfig, runtime: Runtime) -> Dispatcher:
    """Collects the services, and returns what answers for all of them."""
    methods = MethodTable()
    # Typed as the server whose two methods for registering it has: generated code asks for one.
    registrar = cast(grpc.aio.Server, methods)
    application.register(registrar)
    watches = min(MAX_WATCHES, max(1, config.max_concurrent_rpcs // 2))
    health = HealthServicer(runtime.health, max_watches=watches)
    health_pb2_grpc.add_HealthServicer_to_server(health, registrar)
    policy = {**application.policy, **HEALTH_POLICY}
    if config.reflection:
        health_file = FileDescriptorProto()
        health_pb2.DESCRIPTOR.CopyToProto(health_file)
        services = {*application.services, HEALTH_SERVICE, REFLECTION_SERVICE}
        add_reflection(registrar, services, [*application.descriptors, health_file])
        policy.update(REFLECTION_POLICY)
    return Dispatcher(
        service=runtime.service,
        policy=policy,
        methods=methods,
        metrics=runtime.server_metrics,
        raw_methods=application.raw_methods,
        request_limits=application.request_limits,
        keys=_api_keys(config, runtime),
        max_calls=config.max_concurrent_rpcs,
        always_answered=application.always_answered,
    )


def _bind(
    server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None
) -> Address:
    try:
        if credentials is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:
        raise BindError(
            f"cannot listen on {address}: it is taken, or no address of this machine"
        ) from error
    return address.with_port(port)


def _credentials(config: ServerConfig, runtime: Runtime) -> grpc.ServerCredentials | None:
    if config.tls_certificate is None or config.tls_key is None:
        return None
    try:
        return server_credentials(
            certificate=config.tls_certificate,
            key=config.tls_key,
            client_ca=config.tls_client_ca,
            on_reload_error=lambda: runtime.server_metrics.reload_failed("tls"),
        )
    except OSError as error:
        raise ConfigError("tls_certificate", f"cannot be used with its key: {error}") from error


def _api_keys(config: ServerConfig, runtime: Runtime) -> ApiKeys | None:
    if config.api_keys_file is None:
        return None
    try:
        return ApiKeys(
            config.api_keys_file,
            on_reload_error=lambda: runtime.server_metrics.reload_failed("api_keys"),
        )
    except (OSError, ValueError) as error:
        raise ConfigError("api_keys_file", str(error)) from error


def _options(config: ServerConfig, *, share_port: bool = False) -> list[tuple[str, int]]:
    waiting = _BURSTS * config.max_concurrent_rpcs + _PROBES
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # Between the soft and the hard limit gRPC refuses calls at random; one number is a limit.
        ("grpc.max_metadata_size", config.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", config.max_metadata_bytes),
        # Without a cap a client can open and reset streams faster than the server frees them.
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        # Calls that come faster than the event loop takes them. Above this gRPC cancels them, which
        # tells a caller nothing; those that are taken are answered, or refused with the reason.
        ("grpc.server.max_pending_requests", waiting),
        ("grpc.server.max_pending_requests_hard_limit", waiting),
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.server_handshake_timeout_ms", _milliseconds(config.handshake_timeout_seconds)),
        ("grpc.max_connection_idle_ms", _milliseconds(config.max_connection_idle_seconds)),
        ("grpc.max_connection_age_ms", _milliseconds(config.max_connection_age_seconds)),
        # Zero is a real value here: calls in flight get no time.
        (
            "grpc.max_connection_age_grace_ms",
            round(config.max_connection_age_grace_seconds * 1000),
        ),
        ("grpc.keepalive_time_ms", _milliseconds(config.keepalive_time_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(config.keepalive_timeout_seconds)),
        # Without it a ping that is not answered may take a minute to count.
        ("grpc.http2.ping_timeout_ms", _milliseconds(config.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            round(config.min_ping_interval_seconds * 1000),
        ),
        # Otherwise a second process shares the port without a word and takes half of the calls.
        # Workers of one supervisor share theirs on purpose.
        ("grpc.so_reuseport", int(share_port)),
    ]


def _milliseconds(seconds: float) -> int:
    """Returns gRPC's number for a time of which 0 means never."""
    return min(round(seconds * 1000), _NEVER_MILLISECONDS) if seconds else _NEVER_MILLISECONDS
