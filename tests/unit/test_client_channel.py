from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

import modelrail.client
from modelrail.client import blocking, channel
from modelrail.client.channel import Connection
from modelrail.client.download import target_path
from modelrail.client.errors import DataLoss
from modelrail.client.inference import AsyncInferenceClient
from modelrail.client.registry import AsyncRegistryClient
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.oip.v2 import grpc_service_pb2
from modelrail.registry.v1 import registry_pb2
from modelrail.trainer.v1 import trainer_pb2


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1",
        "localhost:1",
        "[::1]:1",
        "unix:/tmp/x",
        "dns:///localhost:1",
        "ipv4:127.0.0.1:1",
    ],
)
def test_a_key_may_go_in_plain_text_to_this_machine(address: str) -> None:
    connection = Connection(address=address, api_key="mrk_a_b")
    assert connection.call_metadata == (("authorization", "Bearer mrk_a_b"),)
    assert "mrk" not in repr(connection)


@pytest.mark.parametrize("address", ["10.0.0.1:1", "example.org:1", "dns:///localhost.evil.org:1"])
def test_a_key_is_never_sent_in_plain_text_to_another_machine(address: str) -> None:
    with pytest.raises(ValueError, match="plain text"):
        Connection(address=address, api_key="mrk_a_b")
    assert Connection(address=address, api_key="mrk_a_b", tls=True).uses_tls


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        Connection(address="x:1", certificate=Path("c.pem"))


def test_only_idempotent_methods_are_repeated_and_only_when_the_server_goes() -> None:
    (method,) = channel.service_config()["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]
    repeated = {(entry["service"], entry["method"]) for entry in method["name"]}
    services = {
        service.full_name: service
        for file in (registry_pb2, trainer_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    }
    for service_name, method_name in repeated:
        if service_name == "inference.GRPCInferenceService":
            service = next(iter(grpc_service_pb2.DESCRIPTOR.services_by_name.values()))
        else:
            service = services[service_name]
        found = service.methods_by_name[method_name]
        assert not found.client_streaming
        assert not found.server_streaming
        changes = method_name.startswith(("Create", "Update", "Delete", "Cancel"))
        assert not changes or "request_id" in found.input_type.fields_by_name


def test_the_keepalive_options_come_together() -> None:
    options = dict(channel._channel_options())
    assert {
        "grpc.keepalive_time_ms",
        "grpc.keepalive_timeout_ms",
        "grpc.http2.ping_timeout_ms",
    } <= set(options)
    assert "round_robin" in json.loads(options["grpc.service_config"])["loadBalancingConfig"][0]


@pytest.mark.parametrize(
    ("twin", "original", "missing"),
    [
        (blocking.RegistryClient, AsyncRegistryClient, set()),
        (blocking.TrainerClient, AsyncTrainerClient, set()),
        (blocking.InferenceClient, AsyncInferenceClient, {"stream_infer"}),
    ],
)
def test_each_sync_client_has_the_methods_of_its_async_twin(
    twin: type, original: type, missing: set[str]
) -> None:
    own = {
        name
        for name, member in vars(original).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    assert {name for name in own if hasattr(twin, name)} == own - missing


def test_everything_exported_exists() -> None:
    assert all(hasattr(modelrail.client, name) for name in modelrail.client.__all__)


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "", ".", "a\\..\\x", "a\0b", "link/x"]
)
def test_a_file_never_leaves_the_directory(tmp_path: Path, path: str) -> None:
    directory = tmp_path / "version"
    directory.mkdir()
    (directory / "link").symlink_to(tmp_path)
    with pytest.raises(DataLoss) as caught:
        target_path(directory, path)
    assert caught.value.reason == "UNSAFE_PATH"


def test_a_file_below_the_directory_keeps_its_path(tmp_path: Path) -> None:
    assert target_path(tmp_path, "a/b.onnx") == tmp_path.resolve() / "a" / "b.onnx"
