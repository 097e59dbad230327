"""How a client reaches a server: address, credentials, and channel options that were measured."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

__all__ = ["Connection", "open_channel"]

_KEEPALIVE_TIME_SECONDS = 10
_KEEPALIVE_TIMEOUT_SECONDS = 5

# Methods whose repetition changes nothing more: reads, and mutations that carry a request_id, which
# this client always sends. UpdateModel, DeleteModelAlias and CancelTrainingJob carry none, so a
# repeated call could report a failure for what the first one did. Streams resume in code, which
# knows their position.
_IDEMPOTENT_METHODS: dict[str, tuple[str, ...]] = {
    "modelrail.registry.v1.RegistryService": (
        "GetModel",
        "ListModels",
        "CreateModel",
        "GetModelVersion",
        "ListModelVersions",
        "CreateModelVersion",
        "GetModelAlias",
        "ListModelAliases",
        "UpdateModelAlias",
        "GetBlob",
    ),
    "modelrail.trainer.v1.TrainerService": (
        "GetTrainingJob",
        "ListTrainingJobs",
        "CreateTrainingJob",
    ),
    "inference.GRPCInferenceService": (
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where a server is and how to prove who is calling.

    Raises:
        ValueError: The address is empty, the certificate comes without its key, or the API key
            would cross a network in plain text.
    """

    address: str
    """`HOST:PORT`, `dns:///HOST:PORT` or `unix:PATH`."""
    api_key: str | None = field(default=None, repr=False)
    """Sent with every call; needs TLS unless the server is on this machine."""
    ca_certificate: Path | None = None
    """PEM file of the authority that the server's certificate must come from; turns TLS on."""
    certificate: Path | None = None
    """PEM file of the client's own certificate, for servers that ask for one; turns TLS on."""
    key: Path | None = None
    """PEM file of the key of `certificate`."""
    tls: bool = False
    """TLS with the machine's own authorities, where no `ca_certificate` is given."""

    def __post_init__(self) -> None:
        if not self.address:
            raise ValueError("address: expected HOST:PORT or unix:PATH, got nothing")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key: expected both or neither")
        if self.api_key is not None and not self.uses_tls and not self.is_local:
            raise ValueError(
                f"api_key: refusing to send it in plain text to {self.address};"
                " give ca_certificate or tls"
            )

    @classmethod
    def of(cls, connection: Connection | str) -> Connection:
        """Returns `connection`, made from the address when it is text."""
        return cls(address=connection) if isinstance(connection, str) else connection

    @property
    def uses_tls(self) -> bool:
        """Whether calls are encrypted."""
        return self.tls or self.ca_certificate is not None or self.certificate is not None

    @property
    def is_local(self) -> bool:
        """Whether calls never leave this machine: unix sockets and loopback addresses."""
        scheme, _, rest = self.address.partition(":")
        if scheme in {"unix", "unix-abstract"}:
            return True
        if rest.startswith("//") and scheme != "dns":
            return False  # A resolver of another kind, such as xds, which leads anywhere.
        target = rest if scheme in {"dns", "ipv4", "ipv6"} else self.address
        host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries to say who is calling."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()


def open_channel(
    connection: Connection | str, *, options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """Opens a channel with keepalive, round robin and retries of idempotent methods.

    Call it inside a running event loop. Nothing is connected before the first call.

    Args:
        connection: Where the server is, or just its address.
        options: More of gRPC's channel arguments; they win over those set here.

    Raises:
        OSError: A certificate or key cannot be read.
    """
    connection = Connection.of(connection)
    options = (*_channel_options(), *options)
    if not connection.uses_tls:
        return grpc.aio.insecure_channel(connection.address, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(connection.ca_certificate),
        private_key=_read(connection.key),
        certificate_chain=_read(connection.certificate),
    )
    return grpc.aio.secure_channel(connection.address, credentials, options=options)


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _channel_options() -> Sequence[tuple[str, Any]]:
    return (
        # Only the three together notice a server that is frozen rather than gone.
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_SECONDS * 1000),
        # gRPC waits up to two minutes between connection attempts; a server that restarts is back
        # sooner.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 5000),
        # The server's own limits answer with a clear error; a second limit here would only hide it.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.service_config", json.dumps(service_config())),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.primary_user_agent", "modelrail-client"),
    )


def service_config() -> dict[str, Any]:
    """Returns the gRPC service config: https://github.com/grpc/grpc/blob/master/doc/service_config.md."""
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, methods in _IDEMPOTENT_METHODS.items()
                    for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    # A server that stops answers CANCELLED to what it has not begun
                    # yet (grpc#41785).
                    # What the caller itself cancels is not repeated.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
        # Stops retrying when most calls fail: an overloaded server must not be hit five times as
        # hard.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
