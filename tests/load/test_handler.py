"""The handlers by hand answer right: a comparison with what is wrong and fast says nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from modelrail.oip.v2 import grpc_service_pb2 as pb
from tests.load.handler import BatchingHandler, Handler
from tests.load.models import MODELS
from tests.load.request import encode

MLP = MODELS["mlp"]


@pytest.fixture
def replies(tmp_path: Path) -> Path:
    for name in ("ModelMetadata", "ModelInfer"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


async def test_requests_that_run_together_are_answered_as_alone(
    replies: Path, tmp_path: Path
) -> None:
    file = MLP.file(tmp_path)
    bodies = [encode("mlp", MLP.inputs(1, np.random.default_rng(seed))) for seed in range(20)]
    alone, together = Handler(replies, file), BatchingHandler(replies, file, 2)
    expected = [await alone.infer(body, None) for body in bodies]
    found = await asyncio.gather(*(together.infer(body, None) for body in bodies))
    for one, other in zip(expected, found, strict=True):
        ours, theirs = map(pb.ModelInferResponse.FromString, (one, other))
        assert list(ours.outputs[0].shape) == list(theirs.outputs[0].shape) == [1, 10]
        np.testing.assert_allclose(
            np.frombuffer(ours.raw_output_contents[0], np.float32),
            np.frombuffer(theirs.raw_output_contents[0], np.float32),
            rtol=1e-5,
        )
    (counted,) = pb.ModelStatisticsResponse.FromString(
        await together.statistics(b"", None)
    ).model_stats
    assert counted.inference_stats.success.count == counted.inference_count == 20
    assert 0 < counted.execution_count <= 20


async def test_what_cannot_run_is_told_to_those_who_wait(replies: Path, tmp_path: Path) -> None:
    handler = BatchingHandler(replies, MLP.file(tmp_path), 1)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        await handler.run({"features": np.zeros((1, 3), np.float32)})
