"""What a reader of `modelrail models` learns of a version: its proof, and its figures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from modelrail.cli.commands.models import list_versions, show
from modelrail.cli.session import Session
from modelrail.registry.v1 import registry_pb2 as pb

VERSION = pb.ModelVersion(
    name="models/m/versions/3",
    number=3,
    certificate=pb.ExportCertificate(
        opset=20,
        absolute_tolerance=1e-5,
        relative_tolerance=1e-4,
        batch_sizes=[1, 2, 7, 33],
        outputs=[
            pb.OutputParity(name="logits", max_absolute_difference=1.9e-06),
            pb.OutputParity(name="probabilities", max_absolute_difference=1.2e-07),
        ],
        rows=60,
        tools={"torch": "2.13.0", "onnxruntime": "1.27.1"},
        attempts=[
            pb.ExportAttempt(method="optimized", failure="logits differ"),
            pb.ExportAttempt(method="as it is"),
        ],
    ),
    metrics=[
        pb.Metric(name="accuracy", split="test", runtime="pytorch", value=0.9375),
        pb.Metric(name="accuracy", split="test", runtime="onnxruntime", value=0.921875),
        pb.Metric(name="loss", split="test", runtime="pytorch", value=0.25),
        pb.Metric(name="loss", split="train", runtime="pytorch", value=0.125),
    ],
)


class Registry:
    """A session whose registry holds one version."""

    @asynccontextmanager
    async def registry(self) -> AsyncIterator[Registry]:
        yield self

    async def get_model_version(self, _: str) -> pb.ModelVersion:
        return VERSION

    async def list_model_versions(self, _: str) -> AsyncIterator[pb.ModelVersion]:
        yield VERSION


@pytest.fixture
def session() -> Session:
    return cast(Session, Registry())


async def test_a_version_is_shown_with_all_that_its_certificate_says(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    await show(session, "m@3")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    first = lines.index("proof logits differs by at most 1.9e-06")
    assert lines[first:] == [
        "proof logits differs by at most 1.9e-06",
        "proof probabilities differs by at most 1.2e-07",
        "compared 60 validation rows, zeros and large values, with PyTorch",
        "allowed 1e-05 + 0.0001 of the value",
        "batch sizes 1, 2, 7, 33",
        "opset 20",
        "tools onnxruntime 1.27.1, torch 2.13.0",
        "export optimized failed: logits differ",
        "export as it is",
        "rows figure pytorch onnxruntime",
        "test accuracy 0.9375 0.921875",
        "test loss 0.25 -",
        "train loss 0.125 -",
    ]


async def test_versions_are_listed_with_each_figure_and_what_computed_it(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    await list_versions(session, "m")
    listed = " ".join(capsys.readouterr().out.split())
    assert "test accuracy 0.9375 (pytorch)" in listed
    assert "test accuracy 0.9219 (onnxruntime)" in listed
    assert "train loss 0.125 (pytorch)" in listed
