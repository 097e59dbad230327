"""What the inference service is told to serve, and what it answers when that makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelrail.names import InvalidName, ModelAliasName, ModelVersionName
from modelrail_inference.config import InferenceConfig
from modelrail_inference.sources.registry.reference import EveryModelWith, parse_reference
from modelrail_server.config import load_config

REGISTRY = "--registry=127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("digits", ModelAliasName("digits", "production")),
        ("digits@staging", ModelAliasName("digits", "staging")),
        ("digits@3", ModelVersionName("digits", 3)),
        ("*@production", EveryModelWith("production")),
    ],
)
def test_a_reference_means_a_version_an_alias_or_every_model(text: str, meaning: object) -> None:
    assert parse_reference(text) == meaning


@pytest.mark.parametrize("text", ["", "*", "*@", "*@3", "*@Up", "dig*@production", "../x@y", "a@"])
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_reference(text)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["--registry", "--model-repository", "--model", "--serve"]),
        ([REGISTRY], ["--serve", "--registry", "*@production"]),
        (["--serve=digits"], ["--registry"]),
        (["--model=x.onnx", REGISTRY, "--serve=a"], ["exactly one", "--registry", "--model"]),
        ([REGISTRY, "--serve=*@3"], ["--serve", "*@3"]),
        ([REGISTRY, "--serve=a", "--serve=b", "--max-models=1"], ["--max-models", "2"]),
        ([REGISTRY, "--serve=a", "--load-timeout-seconds=0"], ["--load-timeout-seconds"]),
    ],
    ids=str,
)
def test_a_start_that_makes_no_sense_ends_and_names_the_flags(
    arguments: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_config(
            InferenceConfig,
            service="inference",
            argv=[f"--data-dir={tmp_path}", *arguments],
            environ={},
        )
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in named), message
