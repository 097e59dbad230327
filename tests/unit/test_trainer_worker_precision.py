from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.spec import Precision
from modelrail_trainer.worker import data
from modelrail_trainer.worker.learning.device import CPU
from modelrail_trainer.worker.learning.loop import Trained, fit
from modelrail_trainer.worker.learning.precision import rounding
from modelrail_trainer.worker.training_data import TrainingData
from modelrail_trainer.zoo import ZooModel

DIGITS = spec.TrainingJobSpec(
    dataset=spec.BundledDataset(name="digits"),
    model=spec.CnnModel(channels=(8,), hidden_units=16),
    loss=spec.CrossEntropy(),
    optimizer=spec.Adam(learning_rate=0.003),
    epochs=5,
    batch_size=64,
    seed=5,
    publication=spec.Publication(model="digits"),
)
MODELS: dict[str, tuple[ZooModel, tuple[int, ...], int]] = {
    "linear": (spec.LinearModel(), (6,), 0),
    "mlp": (spec.MlpModel(hidden_units=(8,)), (6,), 0),
    "cnn": (spec.CnnModel(channels=(4,), hidden_units=8), (8, 8), 0),
    "resnet": (spec.ResNetModel(channels=(4,), blocks_per_stage=1), (8, 8), 0),
    "gru": (spec.GruModel(), (7,), 20),
    "transformer": (spec.TransformerModel(), (7,), 20),
    "gpt": (spec.GptModel(), (7,), 256),
}


@pytest.fixture(scope="module")
def rows() -> TrainingData:
    return data.load(DIGITS)


def trained(rows: TrainingData, precision: Precision) -> Trained:
    return fit(replace(DIGITS, precision=precision), rows, lambda epoch: None)


def weights(result: Trained) -> dict[str, Tensor]:
    return result.network.state_dict()


def test_mixed_precision_learns_as_well_and_keeps_weights_of_32_bits(rows: TrainingData) -> None:
    plain, mixed = (trained(rows, precision) for precision in Precision)
    assert mixed.best_figure == pytest.approx(plain.best_figure, rel=0.1)
    assert any(not torch.equal(weights(plain)[name], w) for name, w in weights(mixed).items())
    assert {parameter.dtype for parameter in mixed.network.parameters()} == {torch.float32}


def test_two_runs_in_mixed_precision_give_the_same_bits(rows: TrainingData) -> None:
    one, two = (weights(trained(rows, Precision.MIXED_BF16)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_precision_is_read_from_what_a_client_sends() -> None:
    mixed = pb.TrainingJobSpec(precision=pb.TrainingJobSpec.PRECISION_MIXED_BF16)
    assert spec_from_pb(mixed).precision is Precision.MIXED_BF16
    assert spec_from_pb(pb.TrainingJobSpec()).precision is Precision.FP32


def test_products_are_rounded_to_the_eight_bits_of_bfloat16_in_the_context_only() -> None:
    factor = torch.tensor([[1 + 2**-10]])
    with rounding(Precision.MIXED_BF16, CPU):
        assert (factor @ torch.ones(1, 1)).item() == 1
    with rounding(Precision.FP32, CPU):
        assert (factor @ torch.ones(1, 1)).item() == 1 + 2**-10


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_trains_in_mixed_precision(name: str) -> None:
    model, shape, tokens = MODELS[name]
    torch.manual_seed(0)
    body = model.build(shape, 3, tokens)
    random = np.random.default_rng(0)
    values = random.integers(1, tokens, (4, *shape)) if tokens else random.random((4, *shape))
    inputs = torch.from_numpy(values if tokens else values.astype(np.float32))  # [4, *shape]
    with rounding(Precision.MIXED_BF16, CPU):
        loss = body(inputs).float().square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in body.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)
