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

# Methods whose repetition changes nothing more: reads, and mutations that carry a request_id, which
# this client always sends. UpdateModel, DeleteModelAlias, CancelTrainingJob and DeleteTrainingJob
# carry none, so a repeated call could report a failure for what the first one did. Streams resume
# in code, which knows their position.
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
        ValueError: The address is empty, the certificate comes without its key, the API key would
            cross a network in plain text, or a time is not more than 0.
    """

    address: str
    """`HOST:PORT`, `dns:///HOST:PORT` or `unix:PATH`.

    Calls go in turn to every server behind it: all that the name of `dns:///` leads to, such as a
    headless service of Kubernetes, or those of a list, `ipv4:IP:PORT,IP:PORT` (also `ipv6:`).
    """
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
    keepalive_time_seconds: float = 6.0
    """Silence of a server, during a call, after which it is asked for a sign of life.

    A server cuts off whoever asks too often: this must stay above its `min_ping_interval_seconds`,
    which is 5 unless it was set. Other servers allow less, so a call during which nothing else is
    said is asked for twice, and then once a minute.
    """
    keepalive_timeout_seconds: float = 3.0
    """Wait for that sign, after which the connection is given up.

    Its calls end with `Unavailable`, and those that may be repeated are, on another server; the
    next calls go to others until it answers again. So a frozen server costs a call at most the sum
    of both times, which the clients' own deadline of 10 s outlasts. A call with a shorter deadline
    fails with `DeadlineExceeded` until then: make both times shorter for such calls, and the
    server's `min_ping_interval_seconds` with them. The price is that a network which pauses for
    this wait cuts the connection, and with it the streams, which are not repeated. However long the
    server works on a request, it answers the question meanwhile.
    """

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
        for name in ("keepalive_time_seconds", "keepalive_timeout_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")

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
        if scheme in {"ipv4", "ipv6"}:
            return all(_is_loopback(server) for server in rest.split(","))
        return _is_loopback(rest if scheme == "dns" else self.address)

    @property
    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries to say who is calling."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()


def _is_loopback(target: str) -> bool:
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
    # gRPC takes the first of two values for a number.
    options = tuple({**dict(_channel_options(connection)), **dict(options)}.items())
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


def _channel_options(connection: Connection) -> Sequence[tuple[str, Any]]:
    keepalive_timeout_ms = round(connection.keepalive_timeout_seconds * 1000)
    return (
        # Only the three together notice a server that is frozen rather than gone.
        ("grpc.keepalive_time_ms", round(connection.keepalive_time_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", keepalive_timeout_ms),
        ("grpc.http2.ping_timeout_ms", keepalive_timeout_ms),
        # gRPC waits up to two minutes between connection attempts; a server that restarts is back
        # sooner. The longest wait, 20 % of jitter included, is shorter than the attempts of a call
        # last together: in a rollout the last server that a client knows of may stop as soon as
        # the others are back, and before the client has looked for them.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 800),
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
                    # 0.1, 0.2, 0.4 and 0.8 s, each with 20 % of jitter: a server that cannot be
                    # reached is told as that, with the reason, to calls with a deadline of 2 s too.
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    # CANCELLED, because gRPC's servers end like this what reached them in the
                    # moment in which they stop. Who cancels a call by itself never gets here.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
        # Stops retrying when most calls fail: an overloaded server must not be hit five times as
        # hard.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
