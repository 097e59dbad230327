"""Configuration: precedence, conversion, and everything that must stop the start."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelrail_server.address import Address
from modelrail_server.config import ConfigError, ServerConfig, load_config, setting


class Provider(enum.Enum):
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleConfig(ServerConfig):
    grpc_address: str = setting("127.0.0.1:8011", "Where to listen.")
    workers: int = setting(2, "Workers at a time.", minimum=1, maximum=8)
    delay_seconds: float = setting(0.5, "Delay in seconds.", minimum=0)
    provider: Provider = setting(Provider.CPU, "Where models run.")
    serve: tuple[str, ...] = setting((), "Models to serve; 100% of them.")
    registry: str | None = setting(None, "Address of the registry.")


def load(argv: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> ExampleConfig:
    return load_config(ExampleConfig, service="example", argv=argv, environ=environ or {})


def refusal(
    capsys: pytest.CaptureFixture[str],
    argv: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> str:
    with pytest.raises(SystemExit) as exit_:
        load(argv, environ)
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def test_the_command_line_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"MODELRAIL_EXAMPLE_WORKERS": "3", "MODELRAIL_EXAMPLE_DELAY_SECONDS": "2"}
    config = load(["--workers", "4"], environ)
    assert (config.workers, config.delay_seconds, config.provider) == (4, 2.0, Provider.CPU)
    assert config.grpc_address == "127.0.0.1:8011"


def test_values_have_the_type_of_their_field() -> None:
    config = load(
        ["--provider", "cuda", "--data-dir", "/srv/x", "--serve", "a", "--serve=b@c", "--insecure"]
    )
    assert config.provider is Provider.CUDA
    assert config.data_dir == Path("/srv/x")
    assert config.serve == ("a", "b@c")
    assert config.insecure is True
    environ = {"MODELRAIL_EXAMPLE_SERVE": "a, b", "MODELRAIL_EXAMPLE_INSECURE": "yes"}
    assert load([], environ).serve == ("a", "b")
    assert load(["--no-insecure"], environ).insecure is False


def test_an_empty_variable_unsets_an_optional_field() -> None:
    assert load([], {"MODELRAIL_EXAMPLE_REGISTRY": ""}).registry is None


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--workers", "many"], "--workers: expected a whole number from 1 to 8, got 'many'"),
        (["--workers", "0"], "--workers: expected a whole number from 1 to 8, got '0'"),
        (["--workers", "9"], "--workers: expected a whole number from 1 to 8, got '9'"),
        (["--workers", "2.0"], "--workers: expected a whole number from 1 to 8, got '2.0'"),
        (["--delay-seconds", "nan"], "--delay-seconds: expected a number of at least 0, got 'nan'"),
        (["--delay-seconds", "inf"], "--delay-seconds: expected a number of at least 0, got 'inf'"),
        (["--delay-seconds=-1"], "--delay-seconds: expected a number of at least 0, got '-1'"),
        (["--provider", "tpu"], "--provider: expected one of cpu, cuda, got 'tpu'"),
        (["--data-dir", ""], "--data-dir: expected a value that is not empty, got ''"),
        (["--worker", "3"], "--worker: unknown argument"),
        (["--port", "3"], "--port: unknown argument"),
        (["stray"], "stray: unknown argument"),
        (["--grpc-address", "8011"], "--grpc-address: expected HOST:PORT or unix:PATH, got '8011'"),
        (["--grpc-address", "a:70000"], "--grpc-address: expected HOST:PORT or unix:PATH"),
        (["--metrics-address", "unix:/x"], "--metrics-address: expected HOST:PORT, got 'unix:/x'"),
        (["--tls-certificate", "c"], "--tls-key: expected the key of --tls-certificate, got none"),
        (["--tls-key", "k"], "--tls-certificate: expected the certificate of --tls-key, got none"),
        (["--tls-client-ca", "k"], "--tls-certificate: expected one, as --tls-client-ca is set"),
    ],
)
def test_a_wrong_argument_stops_the_start_and_is_named(
    argv: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problem in refusal(capsys, argv)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("WORKERS", "x", "MODELRAIL_EXAMPLE_WORKERS: expected a whole number from 1 to 8, got 'x'"),
        ("INSECURE", "maybe", "MODELRAIL_EXAMPLE_INSECURE: expected true or false, got 'maybe'"),
        ("SERVE", "a,,b", "MODELRAIL_EXAMPLE_SERVE: expected values that are not empty"),
        ("WORKER", "1", "MODELRAIL_EXAMPLE_WORKER: unknown variable"),
        ("workers", "1", "MODELRAIL_EXAMPLE_workers: unknown variable"),
    ],
)
def test_a_wrong_variable_stops_the_start_and_is_named(
    name: str, value: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problem in refusal(capsys, [], {f"MODELRAIL_EXAMPLE_{name}": value})


def test_a_wrong_variable_stops_the_start_even_where_the_command_line_wins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    environ = {"MODELRAIL_EXAMPLE_WORKERS": "x"}
    assert "MODELRAIL_EXAMPLE_WORKERS" in refusal(capsys, ["--workers", "3"], environ)


def test_all_problems_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, ["--workers", "x", "--typo"], {"MODELRAIL_EXAMPLE_DELAY": "1"})
    assert all(name in message for name in ("--workers", "--typo", "MODELRAIL_EXAMPLE_DELAY"))


@pytest.mark.parametrize(
    "suffix",
    [
        "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_8011_TCP",
        "PORT_8011_TCP_ADDR", "PORT_8011_TCP_PORT", "PORT_8011_TCP_PROTO",
    ],
)  # fmt: skip
def test_the_variables_of_kubernetes_service_links_are_refused_with_the_cure(
    suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, [], {f"MODELRAIL_EXAMPLE_{suffix}": "tcp://10.0.0.7:8011"})
    assert f"MODELRAIL_EXAMPLE_{suffix}: unknown variable" in message
    assert "enableServiceLinks: false" in message


def test_variables_of_other_programs_are_nobodys_business() -> None:
    environ = {"MODELRAIL_REGISTRY_WORKERS": "x", "MODELRAIL_API_KEY": "x", "PATH": "x"}
    assert load([], environ).workers == 2


def test_help_lists_every_field_with_its_variable_and_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for name in ExampleConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
        assert f"MODELRAIL_EXAMPLE_{name.upper()}" in text
    assert "[MODELRAIL_EXAMPLE_WORKERS; default: 2]" in text
    assert "100% of them" in text


PUBLIC = "0.0.0.0:8011"


@pytest.mark.parametrize("address", [PUBLIC, "[::]:1", "10.0.0.7:1", "registry.example:1"])
def test_an_address_that_others_reach_needs_tls_and_keys(address: str) -> None:
    tls: dict[str, Any] = {"tls_certificate": Path("c"), "tls_key": Path("k")}
    with pytest.raises(ConfigError, match=r"needs TLS .* and keys .*--insecure") as error:
        ServerConfig(grpc_address=address)
    assert error.value.field == "grpc_address"
    with pytest.raises(ConfigError, match="needs keys"):
        ServerConfig(grpc_address=address, **tls)
    with pytest.raises(ConfigError, match="needs TLS"):
        ServerConfig(grpc_address=address, api_keys_file=Path("keys"))
    ServerConfig(grpc_address=address, api_keys_file=Path("keys"), **tls)
    ServerConfig(grpc_address=address, insecure=True)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "127.8.8.8:1", "localhost:1", "[::1]:1", "unix:/run/x", "unix:x"]
)
def test_an_address_of_this_machine_needs_nothing(address: str) -> None:
    assert ServerConfig(grpc_address=address).grpc_address == address


@pytest.mark.parametrize("text", ["", ":1", "unix:", "a", "a:b", "::1:80", "http://a:1", "a:1 "])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT or unix:PATH"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "localhost:0", "unix:/run/x.sock"])
def test_an_address_is_spelled_as_it_was_read(text: str) -> None:
    assert str(Address.parse(text)) == text
