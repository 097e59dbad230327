"""TLS on a real port: certificates, client certificates, and files that change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelrail_server.access.tls import server_credentials
from modelrail_server.access.watched import WatchedFiles
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ConfigError, ServerConfig
from modelrail_server.server import start_server


class Files:
    """PEM files of one server, and the authority that signed them."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.client_ca = folder / "ca.pem"
        self.issue()

    def issue(self) -> None:
        """Makes a new authority and new files."""
        self.authority = trustme.CA()
        certificate = self.authority.issue_cert("localhost", "127.0.0.1")
        self.certificate.write_bytes(b"".join(p.bytes() for p in certificate.cert_chain_pems))
        self.key.write_bytes(certificate.private_key_pem.bytes())
        self.client_ca.write_bytes(self.root)

    @property
    def root(self) -> bytes:
        return bytes(self.authority.cert_pem.bytes())

    def client(self, authority: trustme.CA) -> tuple[bytes, bytes]:
        """Key and certificate of a client."""
        certificate = authority.issue_cert("client@example.org")
        chain = b"".join(p.bytes() for p in certificate.cert_chain_pems)
        return certificate.private_key_pem.bytes(), chain


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(files: Files, *, client_ca: bool = False) -> AsyncIterator[str]:
    config = ServerConfig(
        grpc_address="127.0.0.1:0",
        tls_certificate=files.certificate,
        tls_key=files.key,
        tls_client_ca=files.client_ca if client_ca else None,
    )
    application = Application(register=lambda server: None, services=(), policy={})
    server, address = await start_server(application, config, Runtime("test"))
    try:
        yield address
    finally:
        await server.stop(None)


def health_stub(channel: grpc.aio.Channel) -> Any:
    """The stub, whose types know only channels that are not asynchronous."""
    stub: Any = health_pb2_grpc.HealthStub
    return stub(channel)


async def check(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """Asks for the health over a connection of its own and returns how that ended."""
    # Without a private pool of connections, channels with the same arguments share one.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channel = (
        grpc.aio.secure_channel(address, credentials, options=options)
        if credentials
        else grpc.aio.insecure_channel(address, options=options)
    )
    async with channel:
        try:
            await health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def trusting(root: bytes, client: tuple[bytes, bytes] = (b"", b"")) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root, client[0] or None, client[1] or None)


async def test_a_client_that_trusts_the_authority_is_served_and_others_are_not(
    files: Files,
) -> None:
    async with serving(files) as address:
        assert await check(address, trusting(files.root)) is grpc.StatusCode.OK
        assert await check(address, None) is grpc.StatusCode.UNAVAILABLE
        other = trustme.CA().cert_pem.bytes()
        assert await check(address, trusting(other)) is grpc.StatusCode.UNAVAILABLE


async def test_client_certificates_are_required_where_an_authority_is_named(files: Files) -> None:
    async with serving(files, client_ca=True) as address:
        client = files.client(files.authority)
        assert await check(address, trusting(files.root, client)) is grpc.StatusCode.OK
        assert await check(address, trusting(files.root)) is grpc.StatusCode.UNAVAILABLE
        stranger = files.client(trustme.CA())
        assert await check(address, trusting(files.root, stranger)) is grpc.StatusCode.UNAVAILABLE


async def test_new_files_serve_new_connections_and_bad_ones_leave_the_old(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[WatchedFiles[object]] = []

    class Eager(WatchedFiles[object]):
        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, **{**keywords, "interval_seconds": 0})  # type: ignore[arg-type]
            looks.append(self)

    monkeypatch.setattr("modelrail_server.access.tls.WatchedFiles", Eager)
    async with serving(files) as address:
        old = files.root
        key = files.key.read_bytes()
        files.key.write_text("no key")
        assert await check(address, trusting(old)) is grpc.StatusCode.OK
        files.key.write_bytes(key)
        files.issue()
        assert await check(address, trusting(files.root)) is grpc.StatusCode.OK
        assert await check(address, trusting(old)) is grpc.StatusCode.UNAVAILABLE
    assert looks


def test_files_that_do_not_belong_together_do_not_start(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(OSError, match=r"KEY_VALUES_MISMATCH|key values mismatch"):
        server_credentials(certificate=files.certificate, key=Files(other).key)


async def test_a_missing_file_is_told_with_its_field(files: Files) -> None:
    files.key.unlink()
    with pytest.raises(ConfigError, match="tls_certificate: cannot be used with its key"):
        async with serving(files):
            pass
