"""The whole chain as processes that trust nobody: TLS, keys and least privilege everywhere."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import pytest
import trustme

from modelrail.client import (
    AsyncInferenceClient,
    AsyncRegistryClient,
    AsyncTrainerClient,
    Connection,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from modelrail.registry.v1 import registry_pb2
from modelrail_server.access.api_keys import KeyRecord, new_key, write_keys
from modelrail_server.policy import Permission

SERVICES = ("registry", "trainer", "inference")
SECONDS = 120.0
KEY_OF_NOBODY = "mrk_nobody_nothing"


class Process:
    """A service that runs, and everything that it has said."""

    def __init__(self, process: asyncio.subprocess.Process, address_file: Path) -> None:
        self._process = process
        self._address_file = address_file
        self._serving = asyncio.Event()
        self._lines: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr
        async for line in self._process.stderr:
            self._lines.append(line.decode())
            if b'"event": "serving"' in line:
                self._serving.set()
        self._serving.set()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    async def address(self) -> str:
        async with asyncio.timeout(SECONDS):
            await self._serving.wait()
        assert self._process.returncode is None, self.log
        return str(json.loads(self._address_file.read_text())["grpc_address"])

    async def end(self) -> int:
        """Waits for the end and returns the exit status."""
        async with asyncio.timeout(SECONDS):
            await self._reading
            return await self._process.wait()

    async def stop(self) -> int:
        with suppress(ProcessLookupError):
            self._process.terminate()
        return await self.end()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.end()
        # Lets the pipe's transport close before the loop does.
        self._process._transport.close()  # type: ignore[attr-defined]


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a service on a free port of this machine, unless the arguments say otherwise."""
    processes: list[Process] = []

    async def begin(service: str, *arguments: str) -> Process:
        address_file = tmp_path / "run" / f"{service}.json"
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"modelrail_{service}",
            "--grpc-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0",
            f"--data-dir={tmp_path}/{service}", f"--address-file={address_file}",
            *arguments,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        process = Process(started, address_file)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        await process.kill()


class Credentials:
    """Certificates and keys of one installation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(authority.cert_pem.bytes())
        self._certificate, self._key = folder / "server.pem", folder / "server.key"
        self._certificate.write_bytes(b"".join(p.bytes() for p in certificate.cert_chain_pems))
        self._key.write_bytes(certificate.private_key_pem.bytes())
        self.texts: dict[str, str] = {}

    def key(self, name: str, *permissions: Permission) -> KeyRecord:
        """Makes a key; its text is in a file of that name."""
        self.texts[name], record = new_key(name, permissions)
        self.file(name).write_text(self.texts[name] + "\n")
        self.file(name).chmod(0o600)
        return record

    def file(self, name: str) -> Path:
        return self._folder / f"{name}.key"

    def accepted(self, service: str) -> Path:
        """The file with the keys that a server accepts."""
        return self._folder / f"{service}-keys.json"

    def of_server(self, service: str, *keys: KeyRecord) -> list[str]:
        """The flags of a server that accepts these keys."""
        write_keys(self.accepted(service), keys)
        return [
            f"--tls-certificate={self._certificate}",
            f"--tls-key={self._key}",
            f"--api-keys-file={self.accepted(service)}",
        ]

    def of_registry_client(self, name: str) -> list[str]:
        return [
            f"--registry-api-key-file={self.file(name)}",
            f"--registry-ca-certificate={self.ca}",
        ]

    def connection(self, address: str, name: str | None) -> Connection:
        key = self.texts[name] if name else None
        return Connection(address=address, api_key=key, ca_certificate=self.ca)


async def modelrail(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs the command line to its end: exit status, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "modelrail.cli", *arguments,
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{arguments} did not end:\n{out.decode()}{err.decode()}") from None
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_job_becomes_a_prediction_with_tls_and_keys_at_every_service(
    start: Start, tmp_path: Path
) -> None:
    credentials = Credentials(tmp_path)
    trainer_key = credentials.key("trainer", Permission.READ, Permission.WRITE)
    inference_key = credentials.key("inference", Permission.READ)
    user_key = credentials.key("user", Permission.READ, Permission.WRITE, Permission.INFER)
    viewer_key = credentials.key("viewer", Permission.READ)
    processes = {
        "registry": await start(
            "registry", *credentials.of_server("registry", trainer_key, inference_key)
        )
    }
    registry = await processes["registry"].address()
    processes["trainer"] = await start(
        "trainer",
        f"--registry={registry}",
        *credentials.of_registry_client("trainer"),
        *credentials.of_server("trainer", user_key, viewer_key),
    )
    processes["inference"] = await start(
        "inference",
        f"--registry={registry}",
        "--serve=linear@production",
        "--provider=cpu",
        *credentials.of_registry_client("inference"),
        *credentials.of_server("inference", user_key, viewer_key),
    )
    trainer = await processes["trainer"].address()
    inference = await processes["inference"].address()
    caller = [f"--api-key-file={credentials.file('user')}", f"--ca-certificate={credentials.ca}"]
    specification = str(files("modelrail") / "examples" / "linear.yaml")

    status, out, err = await modelrail(
        tmp_path, "train", specification, "--trainer", trainer, "--inference", inference, *caller
    )
    assert status == 0, out + err
    assert "published models/linear/versions/1" in out
    assert "served: version 1 answers" in out

    status, out, err = await modelrail(
        tmp_path, "predict", "linear", "--inference", inference, "--input", "x=[[2.0]]", "--json",
        *caller,
    )  # fmt: skip
    assert status == 0, out + err
    assert json.loads(out)["outputs"]["y"][0][0] == pytest.approx(2.0, abs=0.1)

    for arguments, said in (
        ([], "UNAVAILABLE"),
        ([f"--ca-certificate={credentials.ca}"], "UNAUTHENTICATED"),
        (
            [f"--ca-certificate={credentials.ca}", f"--api-key-file={credentials.file('viewer')}"],
            "PERMISSION_DENIED",
        ),
    ):
        status, out, err = await modelrail(
            tmp_path, "predict", "linear", "--inference", inference, "--input", "x=[[2.0]]",
            *arguments,
        )  # fmt: skip
        assert status == 1, out + err
        assert said in err
        assert "Traceback" not in err

    await _check_least_privilege(credentials, registry, trainer, inference)
    for service, process in processes.items():
        assert await process.stop() == 0, process.log
        for name, key in credentials.texts.items():
            assert key.split("_", 2)[2] not in process.log, f"{service} logs the key {name}"


async def _check_least_privilege(
    credentials: Credentials, registry: str, trainer: str, inference: str
) -> None:
    async with AsyncRegistryClient(credentials.connection(registry, "inference")) as client:
        version = await client.get_model_version("models/linear/versions/1")
        with pytest.raises(PermissionDenied):
            await client.create_model("mine")
        with pytest.raises(PermissionDenied):
            await client.create_model_version(
                "models/linear", registry_pb2.ModelVersion(files=version.files)
            )
        with pytest.raises(PermissionDenied):
            await client.set_alias("models/linear/aliases/production", version.name)
        with pytest.raises(PermissionDenied):
            await client.upload_file(credentials.ca, version_path="x")
    # A key opens only the service that knows it.
    async with AsyncTrainerClient(credentials.connection(trainer, "trainer")) as client_of_trainer:
        with pytest.raises(Unauthenticated):
            await client_of_trainer.get_job("trainingJobs/x")
    async with AsyncInferenceClient(credentials.connection(inference, "inference")) as server:
        assert await server.server_live()
        with pytest.raises(Unauthenticated):
            await server.repository_index()
    async with AsyncRegistryClient(credentials.connection(registry, "user")) as client:
        with pytest.raises(Unauthenticated):
            await client.get_model("models/linear")
    async with AsyncRegistryClient(registry, timeout_seconds=2) as client:
        with pytest.raises(Unavailable):
            await client.get_model("models/linear")


# --- starts that must not happen ------------------------------------------------------------------


def own_flags(service: str, folder: Path) -> list[str]:
    """What a service needs to start at all."""
    return [f"--model-repository={folder}"] if service == "inference" else []


@pytest.mark.parametrize("service", SERVICES)
async def test_an_address_of_the_network_needs_tls_and_keys(
    service: str, start: Start, tmp_path: Path
) -> None:
    credentials = Credentials(tmp_path)
    flags = credentials.of_server(service, credentials.key("reader", Permission.READ))
    tls, keys = flags[:2], flags[2:]
    for given, missing in (
        ([], "TLS (--tls-certificate and --tls-key) and keys (--api-keys-file)"),
        (tls, "needs keys (--api-keys-file)"),
        (keys, "needs TLS (--tls-certificate and --tls-key);"),
    ):
        server = await start(
            service, "--grpc-address=0.0.0.0:0", *given, *own_flags(service, tmp_path)
        )
        assert await server.end() == 2
        assert "--grpc-address: 0.0.0.0:0 can be reached from other machines" in server.log
        assert missing in server.log
        assert "Traceback" not in server.log


@pytest.mark.parametrize("service", SERVICES)
async def test_a_key_file_that_others_can_read_does_not_start(
    service: str, start: Start, tmp_path: Path
) -> None:
    credentials = Credentials(tmp_path)
    flags = credentials.of_server(service, credentials.key("reader", Permission.READ))
    credentials.accepted(service).chmod(0o644)
    server = await start(service, *flags, *own_flags(service, tmp_path))
    assert await server.end() == 2
    assert "--api-keys-file" in server.log
    assert "expected a file that others cannot read, got mode 0644" in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("service", ["trainer", "inference"])
async def test_a_key_is_not_sent_to_a_registry_of_the_network_in_plain_text(
    service: str, start: Start, tmp_path: Path
) -> None:
    key = tmp_path / "registry.key"
    key.write_text(KEY_OF_NOBODY)
    flags = ["--serve=linear"] if service == "inference" else []
    server = await start(
        service, "--registry=192.0.2.1:1", f"--registry-api-key-file={key}", *flags
    )
    assert await server.end() == 2
    assert "plain text" in server.log
    assert KEY_OF_NOBODY not in server.log
    assert "Traceback" not in server.log
