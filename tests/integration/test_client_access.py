"""Clients that show who they are over TLS, and what they are told when that is not enough."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.to_thread
import numpy as np
import pytest
import trustme

from modelrail.client import (
    AsyncInferenceClient,
    AsyncRegistryClient,
    AsyncTrainerClient,
    Connection,
    InternalError,
    ModelrailError,
    PermissionDenied,
    RegistryClient,
    Unauthenticated,
    Unavailable,
)
from modelrail.registry.v1 import registry_pb2
from modelrail.trainer.v1 import trainer_pb2
from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.provider import Provider
from modelrail_inference.service import build as build_inference
from modelrail_registry.__main__ import build as build_registry
from modelrail_registry.config import RegistryConfig
from modelrail_server.access.api_keys import new_key, write_keys
from modelrail_server.application import Runtime
from modelrail_server.policy import Permission
from modelrail_server.server import start_server
from modelrail_trainer.__main__ import build_trainer
from modelrail_trainer.config import TrainerConfig


class Installation:
    """Certificates and keys, and how a client connects with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.authority.cert_pem.bytes())
        self.certificate, self.key = self.identity("server", "127.0.0.1")
        expired = datetime.now(UTC) - timedelta(minutes=1)
        made = {
            "owner": new_key("owner", [p for p in Permission if p is not Permission.PUBLIC]),
            "reader": new_key("reader", [Permission.READ]),
            "expired": new_key("expired", [Permission.READ], expires=expired),
        }
        self.keys = {name: text for name, (text, _) in made.items()}
        self.keys["wrong"] = self.keys["reader"][:-1] + "~"
        write_keys(folder / "keys.json", [record for _, record in made.values()])
        self.address = ""

    def identity(self, name: str, subject: str) -> tuple[Path, Path]:
        """Makes a certificate with its key."""
        made = self.authority.issue_cert(subject)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        certificate.write_bytes(b"".join(p.bytes() for p in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return certificate, key

    def connection(self, key: str | None) -> Connection:
        return Connection(
            address=self.address,
            api_key=self.keys[key] if key else None,
            ca_certificate=self.ca,
        )


@asynccontextmanager
async def registry(
    folder: Path, *, client_certificates: bool = False
) -> AsyncIterator[Installation]:
    """A registry with TLS and keys on a port of this machine."""
    installation = Installation(folder)
    config = RegistryConfig(
        grpc_address="127.0.0.1:0",
        data_dir=folder / "registry",
        tls_certificate=installation.certificate,
        tls_key=installation.key,
        tls_client_ca=installation.ca if client_certificates else None,
        api_keys_file=folder / "keys.json",
    )
    runtime = Runtime("registry")
    async with build_registry(config, runtime) as application:
        server, installation.address = await start_server(application, config, runtime)
        try:
            yield installation
        finally:
            runtime.stopping.set()
            await server.stop(0)


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    async with registry(tmp_path) as started:
        yield started


Create = Callable[[Connection], Awaitable[registry_pb2.Model]]


async def create_async(connection: Connection) -> registry_pb2.Model:
    async with AsyncRegistryClient(connection, timeout_seconds=5) as client:
        return await client.create_model("digits")


async def create_sync(connection: Connection) -> registry_pb2.Model:
    def create() -> registry_pb2.Model:
        with RegistryClient(connection, timeout_seconds=5) as client:
            return client.create_model("digits")

    return await anyio.to_thread.run_sync(create)


@pytest.fixture(params=[create_async, create_sync])
def create(request: pytest.FixtureRequest) -> Create:
    chosen: Create = request.param
    return chosen


async def test_a_key_over_tls_opens_the_registry(
    installation: Installation, create: Create
) -> None:
    assert (await create(installation.connection("owner"))).name == "models/digits"


@pytest.mark.parametrize(
    ("key", "kind", "reason"),
    [
        (None, Unauthenticated, "NO_KEY"),
        ("wrong", Unauthenticated, "WRONG_KEY"),
        ("expired", Unauthenticated, "EXPIRED_KEY"),
        ("reader", PermissionDenied, "PERMISSION_DENIED"),
    ],
)
async def test_a_key_that_does_not_do_is_told_why(
    installation: Installation,
    create: Create,
    key: str | None,
    kind: type[ModelrailError],
    reason: str,
) -> None:
    with pytest.raises(kind) as caught:
        await create(installation.connection(key))
    assert caught.value.reason == reason
    assert caught.value.status is kind.status
    assert re.fullmatch("[0-9a-f]{32}", caught.value.request_id)
    for secret in installation.keys.values():
        assert secret not in repr(caught.value) + str(caught.value)


async def test_a_server_of_another_authority_never_sees_the_key(
    installation: Installation, create: Create, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().cert_pem.bytes())
    connection = dataclasses.replace(installation.connection("owner"), ca_certificate=other)
    with pytest.raises(Unavailable) as caught:
        await create(connection)
    assert installation.keys["owner"] not in str(caught.value)


async def test_a_client_without_tls_does_not_get_in(
    installation: Installation, create: Create
) -> None:
    with pytest.raises(Unavailable):
        await create(Connection(address=installation.address))


@pytest.mark.parametrize(
    "address", ["192.0.2.1:8011", "registry.example:8011", "dns:///registry.example:8011"]
)
def test_a_key_in_plain_text_is_refused_before_anything_is_sent(
    address: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="refusing to send it in plain text") as caught:
        RegistryClient(Connection(address=address, api_key="mrk_a_secret"))
    assert "mrk_a_secret" not in str(caught.value)


async def test_a_client_certificate_is_asked_for_and_checked(
    tmp_path: Path, create: Create
) -> None:
    async with registry(tmp_path, client_certificates=True) as installation:
        certificate, key = installation.identity("client", "client.example")
        connection = installation.connection("owner")
        with pytest.raises(Unavailable):
            await create(connection)
        known = dataclasses.replace(connection, certificate=certificate, key=key)
        assert (await create(known)).name == "models/digits"
        # A certificate says where a call comes from. What it may do is still a matter of the key.
        with pytest.raises(Unauthenticated):
            await create(dataclasses.replace(known, api_key=None))


# --- what errors give away ------------------------------------------------------------------------

LEAKS = re.compile(
    r"""(?ix) /(?:tmp|home|root|usr|work|var|opt|proc)/ | \.py\b | traceback | \bline\ \d+
    | sqlite | sqlalchemy | \bselect\b.+\bfrom\b | \binsert\ into\b | unique\ constraint
    | onnxruntime | \bgrpc[._] | 0x[0-9a-f]{6,} | localhost | 127\.0\.0\.1 | mrk_"""
)


def test_the_pattern_of_leaks_finds_leaks() -> None:
    for text in (
        "cannot open /tmp/x/data", 'File "a.py", line 3', "(sqlite3.Error) no such table",
        "SELECT a FROM b", "<object at 0x7f00aabbcc>", "127.0.0.1:8011 is down",
    ):  # fmt: skip
        assert LEAKS.search(text)
    assert not LEAKS.search("model: expected a name, got 'a/b'")


class Clients:
    """One client of each service."""

    def __init__(
        self,
        registry: AsyncRegistryClient,
        trainer: AsyncTrainerClient,
        inference: AsyncInferenceClient,
    ) -> None:
        self.registry, self.trainer, self.inference = registry, trainer, inference


@pytest.fixture
async def clients(tmp_path: Path) -> AsyncIterator[Clients]:
    models = tmp_path / "models"
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    settings = {name: f"unix:{tmp_path}/{name}" for name in ("registry", "trainer", "inference")}
    registry_config = RegistryConfig(
        grpc_address=settings["registry"], data_dir=tmp_path / "registry-data"
    )
    trainer_config = TrainerConfig(
        grpc_address=settings["trainer"],
        data_dir=tmp_path / "trainer-data",
        registry=f"unix:{tmp_path}/nobody",
    )
    inference_config = InferenceConfig(
        grpc_address=settings["inference"],
        data_dir=tmp_path / "inference-data",
        model_repository=models,
        provider=Provider.CPU,
    )
    runtimes = {name: Runtime(name) for name in settings}
    async with AsyncExitStack() as stack:
        built = [
            (registry_config, build_registry(registry_config, runtimes["registry"])),
            (
                trainer_config,
                build_trainer(
                    trainer_config, runtimes["trainer"], worker_command=("false",), environ={}
                ),
            ),
            (inference_config, build_inference(inference_config, runtimes["inference"])),
        ]
        for (config, building), runtime in zip(built, runtimes.values(), strict=True):
            application = await stack.enter_async_context(building)
            server, _ = await start_server(application, config, runtime)
            stack.push_async_callback(server.stop, 0)
            stack.callback(runtime.stopping.set)
        yield Clients(
            await stack.enter_async_context(AsyncRegistryClient(settings["registry"])),
            await stack.enter_async_context(AsyncTrainerClient(settings["trainer"])),
            await stack.enter_async_context(AsyncInferenceClient(settings["inference"])),
        )


async def test_errors_name_their_reason_and_id_and_give_nothing_away(
    clients: Clients, tmp_path: Path
) -> None:
    registry, trainer, inference = clients.registry, clients.trainer, clients.inference
    await registry.create_model("taken")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    bad = await registry.upload_file(tmp_path / "bad.onnx", version_path="model.onnx")
    absent = registry_pb2.File(path="x", sha256="0" * 64, size_bytes=1)
    climbing = registry_pb2.File(path="../x", sha256=bad.sha256, size_bytes=bad.size_bytes)
    quoted = "models/'; DROP TABLE models; --"
    version, alias = registry_pb2.ModelVersion, "models/taken/aliases/production"
    calls: list[Awaitable[object]] = [
        registry.get_model("models/absent"),
        registry.get_model("models/../../etc/passwd"),
        registry.get_model(quoted),
        registry.get_model("x" * 5000),
        registry.create_model("taken"),
        registry.create_model("../taken"),
        registry.get_model_version("models/taken/versions/7"),
        registry.get_model_version(f"models/taken/versions/{10**30}"),
        registry.get_alias("models/taken/aliases/absent"),
        registry.set_alias(alias, "models/taken/versions/7"),
        registry.create_model_version("models/taken", version()),
        registry.create_model_version("models/taken", version(files=[absent])),
        registry.create_model_version("models/taken", version(files=[climbing])),
        registry.create_model_version("models/taken", version(files=[bad])),
        trainer.get_job("trainingJobs/absent"),
        trainer.get_job("../x"),
        trainer.cancel_job("trainingJobs/absent"),
        trainer.create_job(trainer_pb2.TrainingJobSpec()),
        inference.model_metadata("absent"),
        inference.model_metadata("broken"),
        inference.model_config("../../etc/passwd"),
        inference.load_model("broken"),
        inference.load_model("../models/broken"),
        inference.load_model("absent"),
        inference.infer("absent", {"x": np.zeros((1, 1), np.float32)}),
        inference.infer("broken", {"x": np.zeros((1, 1), np.float32)}),
        inference.statistics("absent"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ModelrailError) as caught:
            await call
        error = caught.value
        assert not isinstance(error, InternalError), f"{number}: {error}"
        assert error.reason, number
        assert error.request_id, number
        # What the caller has sent may come back.
        told = " ".join([error.message, error.resource, *error.metadata.values()])
        told += " ".join(f"{v.field} {v.description}" for v in error.violations)
        found = LEAKS.search(told)
        assert found is None, f"{number}: {found} in {told}"
