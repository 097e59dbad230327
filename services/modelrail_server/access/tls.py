"""TLS for the server's port, with certificates that can change while it runs."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from modelrail_server.access.watched import WatchedFiles

__all__ = ["server_credentials"]


def server_credentials(
    *,
    certificate: Path,
    key: Path,
    client_ca: Path | None = None,
    on_reload_error: Callable[[], None] = lambda: None,
) -> grpc.ServerCredentials:
    """Returns credentials that follow their files.

    New connections see new certificates; open ones live on. Files that cannot be used leave the old
    certificates in force.

    Args:
        certificate: PEM file with the certificate chain of this server.
        key: PEM file with its key.
        client_ca: PEM file with the authorities that must have signed each client's certificate;
            None asks clients for none.
        on_reload_error: Told each time that changed files could not be used.

    Raises:
        OSError: A file cannot be read, or certificate and key do not belong together
            (`ssl.SSLError`).
    """
    files = [certificate, key, *([client_ca] if client_ca else [])]

    def load() -> tuple[bytes, bytes, bytes | None]:
        # gRPC notices bad files only when a client connects. The standard library says it now.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=_no_password)
        if client_ca:
            context.load_verify_locations(client_ca)
        return (
            key.read_bytes(),
            certificate.read_bytes(),
            client_ca.read_bytes() if client_ca else None,
        )

    watched = WatchedFiles(files, load, name="tls", on_error=on_reload_error)
    served = watched.content()
    # gRPC asks from its own threads.
    lock = threading.Lock()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # gRPC takes over and frees what it is given, so each object may be returned only once:
        # a second time crashes the process when many clients connect.
        nonlocal served
        with lock:
            content = watched.content()
            if content is served:
                return None
            served = content
        return _configuration(*content)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(*served),
        changed,  # type: ignore[arg-type]  # the stubs do not know that None says "as before"
        require_client_authentication=client_ca is not None,
    )


def _configuration(
    key: bytes, chain: bytes, client_ca: bytes | None
) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)


def _no_password() -> str:
    """Stands in for the prompt that OpenSSL would open on the terminal."""
    raise ssl.SSLError("the key is encrypted; expected one without a password")
