"""The settings that every server has. A service subclasses `ServerConfig` and adds its own."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from modelrail_server.address import Address
from modelrail_server.loading import ConfigError, load_config, setting

__all__ = ["ConfigError", "LogLevel", "ServerConfig", "load_config", "setting"]

_GIB = 1 << 30


class LogLevel(enum.Enum):
    """The least important lines that are still written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Addresses, credentials and limits of one server.

    A subclass that defines `__post_init__` calls `ServerConfig.__post_init__(self)`: `super()`
    without arguments does not work in slotted dataclasses.

    Raises:
        ConfigError: Fields that exclude or need each other, and an address that others can reach
            without TLS and keys.
    """

    grpc_address: str = setting(
        "127.0.0.1:0", "Address for gRPC: HOST:PORT (port 0: a free one) or unix:PATH."
    )
    metrics_address: str = setting(
        "127.0.0.1:0",
        "Address for Prometheus, path /metrics. May be reachable without TLS and keys:\n"
        "it shows counters and names of models, and scrapers rarely have credentials.",
    )
    data_dir: Path = setting(Path(".modelrail/server"), "Folder for everything that is kept.")
    address_file: Path | None = setting(
        None, "File that names the bound addresses (JSON) while the server serves."
    )
    log_level: LogLevel = setting(LogLevel.INFO, "Least important log lines to write.")

    tls_certificate: Path | None = setting(
        None, "PEM file with the certificate chain; read again when it changes."
    )
    tls_key: Path | None = setting(None, "PEM file with the key of --tls-certificate.")
    tls_client_ca: Path | None = setting(
        None, "PEM file with the authorities whose client certificates are then required."
    )
    api_keys_file: Path | None = setting(
        None,
        "Keys of the callers, made by `python -m modelrail_server.keys`; read again on change.",
    )
    insecure: bool = setting(
        False, "Listen beyond this machine even without TLS and keys. Anybody can then do anything."
    )
    reflection: bool = setting(
        False, "Offer server reflection (with keys: to callers with `read`)."
    )

    drain_delay_seconds: float = setting(
        0.0,
        "On SIGTERM, seconds to go on serving while health says NOT_SERVING. Behind a load\n"
        "balancer: the time that it needs to notice (about 5 in Kubernetes).",
        minimum=0,
        maximum=3600,
    )
    shutdown_grace_seconds: float = setting(
        30.0, "Seconds that calls in flight get to finish after that.", minimum=0, maximum=86400
    )
    max_message_bytes: int = setting(
        64 << 20,
        "Largest request and response in bytes. What is answered beside --max-concurrent-rpcs\n"
        "(health, liveness, readiness, metadata) refuses requests above 4 KiB before it parses\n"
        "them.",
        minimum=1024,
        maximum=2 * _GIB - 1,
    )
    max_metadata_bytes: int = setting(
        8192, "Largest sum of a call's metadata in bytes.", minimum=1024, maximum=1 << 20
    )
    max_connections: int = setting(
        1000, "Connections at a time; more are closed at once.", minimum=1, maximum=1_000_000
    )
    max_concurrent_streams: int = setting(
        100, "Calls at a time on one connection; more wait.", minimum=1, maximum=1_000_000
    )
    max_concurrent_rpcs: int = setting(
        2000,
        "Calls at a time in the whole server, streams included; more are answered\n"
        "RESOURCE_EXHAUSTED with the time to come again. Health, readiness and metadata are\n"
        "answered beside them, all calls together up to twice this number and 64, in requests of\n"
        "at most 4 KiB (Watch of health: 256 at most, and half of this number at most).",
        minimum=1,
        maximum=1_000_000,
    )
    handshake_timeout_seconds: float = setting(
        10.0, "Seconds for a new connection to finish its handshakes.", minimum=0.1, maximum=600
    )
    max_connection_idle_seconds: float = setting(
        900.0,
        "Seconds after which a connection without calls is closed; 0: never.",
        minimum=0,
        maximum=86400,
    )
    max_connection_age_seconds: float = setting(
        3600.0,
        "Seconds after which a connection is asked to reconnect, so that load spreads over\n"
        "new replicas; 0: never.",
        minimum=0,
        maximum=86400,
    )
    max_connection_age_grace_seconds: float = setting(
        600.0, "Seconds that calls on such a connection get to finish.", minimum=0, maximum=86400
    )
    keepalive_time_seconds: float = setting(
        30.0,
        "Seconds of silence after which the server pings a client, to notice dead ones.",
        minimum=1,
        maximum=86400,
    )
    keepalive_timeout_seconds: float = setting(
        10.0, "Seconds that the client has to answer that ping.", minimum=0.1, maximum=600
    )
    min_ping_interval_seconds: float = setting(
        5.0,
        "Shortest pause between the pings of a client; one that pings more often is cut off.",
        minimum=0,
        maximum=86400,
    )

    def __post_init__(self) -> None:
        """Checks what one field alone cannot tell."""
        grpc_address = _address("grpc_address", self.grpc_address)
        if _address("metrics_address", self.metrics_address).path:
            raise ConfigError(
                "metrics_address", f"expected HOST:PORT, got {self.metrics_address!r}"
            )
        if self.tls_certificate and not self.tls_key:
            raise ConfigError("tls_key", "expected the key of --tls-certificate, got none")
        if self.tls_key and not self.tls_certificate:
            raise ConfigError("tls_certificate", "expected the certificate of --tls-key, got none")
        if self.tls_client_ca and not self.tls_certificate:
            raise ConfigError(
                "tls_certificate", "expected one, as --tls-client-ca is set, got none"
            )
        self._check_exposure(grpc_address)

    def _check_exposure(self, address: Address) -> None:
        missing = []
        if not self.tls_certificate:
            missing.append("TLS (--tls-certificate and --tls-key)")
        if not self.api_keys_file:
            missing.append("keys (--api-keys-file)")
        if missing and not address.is_local and not self.insecure:
            raise ConfigError(
                "grpc_address",
                f"{self.grpc_address} can be reached from other machines, which needs"
                f" {' and '.join(missing)}; use a loopback address, or --insecure to serve anyway",
            )


def _address(field: str, text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise ConfigError(field, str(error)) from None
