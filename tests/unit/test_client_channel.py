from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

import modelrail.client
from modelrail.client import blocking, channel
from modelrail.client.channel import Connection
from modelrail.client.download import target_path
from modelrail.client.errors import DataLoss
from modelrail.client.inference import AsyncInferenceClient
from modelrail.client.registry import AsyncRegistryClient
from modelrail.client.service import DEFAULT_TIMEOUT_SECONDS
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.oip.v2 import grpc_service_pb2
from modelrail.registry.v1 import registry_pb2
from modelrail.trainer.v1 import trainer_pb2
from modelrail_server.config import ServerConfig


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1",
        "localhost:1",
        "[::1]:1",
        "unix:/tmp/x",
        "dns:///localhost:1",
        "ipv4:127.0.0.1:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1,[::1]:2",
    ],
)
def test_a_key_may_go_in_plain_text_to_this_machine(address: str) -> None:
    connection = Connection(address=address, api_key="mrk_a_b")
    assert connection.call_metadata == (("authorization", "Bearer mrk_a_b"),)
    assert "mrk" not in repr(connection)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:1",
        "example.org:1",
        "dns:///localhost.evil.org:1",
        "ipv4:10.0.0.1:1,127.0.0.1:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "ipv4:127.0.0.1:1,",
    ],
)
def test_a_key_is_never_sent_in_plain_text_to_another_machine(address: str) -> None:
    with pytest.raises(ValueError, match="plain text"):
        Connection(address=address, api_key="mrk_a_b")
    assert Connection(address=address, api_key="mrk_a_b", tls=True).uses_tls


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        Connection(address="x:1", certificate=Path("c.pem"))


def test_only_idempotent_methods_are_repeated_and_only_when_the_server_went() -> None:
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


def options_of(
    monkeypatch: pytest.MonkeyPatch, connection: Connection, **more: object
) -> dict[str, Any]:
    """What a channel is opened with; each option once, as gRPC would take the first of two."""
    given: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        grpc.aio, "insecure_channel", lambda address, options: given.extend(options)
    )
    channel.open_channel(connection, options=tuple(more.items()))
    assert len(dict(given)) == len(given)
    return dict(given)


def test_the_keepalive_options_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(
        address="x:1", keepalive_time_seconds=0.25, keepalive_timeout_seconds=0.125
    )
    options = options_of(monkeypatch, connection)
    assert options["grpc.keepalive_time_ms"] == 250
    assert options["grpc.keepalive_timeout_ms"] == 125
    assert options["grpc.http2.ping_timeout_ms"] == 125
    assert "round_robin" in json.loads(options["grpc.service_config"])["loadBalancingConfig"][0]


def test_a_frozen_server_is_given_up_before_the_deadline_of_a_call() -> None:
    connection = Connection(address="x:1")
    noticed = connection.keepalive_time_seconds + connection.keepalive_timeout_seconds
    assert noticed + 0.5 < DEFAULT_TIMEOUT_SECONDS
    assert connection.keepalive_time_seconds > ServerConfig().min_ping_interval_seconds


def test_attempts_of_a_call_go_on_for_longer_than_the_wait_for_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (method,) = channel.service_config()["methodConfig"]
    policy = method["retryPolicy"]
    longest, first = (
        float(policy[name].removesuffix("s")) for name in ("maxBackoff", "initialBackoff")
    )
    waits = [
        min(longest, first * policy["backoffMultiplier"] ** number)
        for number in range(policy["maxAttempts"] - 1)
    ]
    options = options_of(monkeypatch, Connection(address="x:1"))
    assert 0.8 * sum(waits) > 1.2 * options["grpc.max_reconnect_backoff_ms"] / 1000
    assert 1.2 * sum(waits) < 2  # then the reason is told to calls with so short a deadline


def test_options_of_the_caller_win(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(address="x:1")
    more: dict[str, Any] = {"grpc.keepalive_time_ms": 7, "grpc.enable_retries": 0}
    options = options_of(monkeypatch, connection, **more)
    assert {name: options[name] for name in more} == more


@pytest.mark.parametrize("name", ["keepalive_time_seconds", "keepalive_timeout_seconds"])
def test_a_keepalive_takes_time(name: str) -> None:
    times: dict[str, Any] = {name: 0.0}
    with pytest.raises(ValueError, match=f"{name}: expected more than 0, got 0.0"):
        Connection(address="x:1", **times)


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
