"""What a job trains on, as far as that shows without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.failure import DeviceUnavailable
from modelrail_trainer.handover.journal import FailureReason
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.spec import Device
from modelrail_trainer.worker.learning.device import CPU, described, device_for, device_of
from modelrail_trainer.worker.learning.losses import at_each_place, loss_function
from modelrail_trainer.worker.learning.replicas import Replicas
from modelrail_trainer.zoo import ZooModel

SECOND_GPU = torch.device("cuda", 1)
# A device that computes shapes alone. What mixes it with the processor's memory fails, as on a GPU.
META = torch.device("meta")
MODELS: dict[str, tuple[ZooModel, tuple[int, ...], int]] = {
    "linear": (spec.LinearModel(), (6,), 0),
    "mlp": (spec.MlpModel(hidden_units=(8,)), (6,), 0),
    "cnn": (spec.CnnModel(channels=(4,), hidden_units=8), (8, 8), 0),
    "resnet": (spec.ResNetModel(channels=(4,), blocks_per_stage=1), (8, 8), 0),
    "gru": (spec.GruModel(bidirectional=True), (7,), 20),
    "transformer": (spec.TransformerModel(), (7,), 20),
    "gpt": (spec.GptModel(), (7,), 256),
}
LOSSES: dict[str, spec.Loss] = {
    "cross-entropy": spec.CrossEntropy(),
    "weighted": spec.CrossEntropy(class_weights=(1.0, 2.0), label_smoothing=0.1),
    "smoothed": spec.CrossEntropy(label_smoothing=0.1),
    "binary": spec.BinaryCrossEntropy(),
    "kl": spec.KlDivergence(temperature=0.2),
    "mse": spec.MeanSquaredError(),
    "mae": spec.MeanAbsoluteError(),
    "huber": spec.Huber(delta=1.0),
}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_the_device_is_read_from_what_a_client_sends() -> None:
    sent = pb.TrainingJobSpec
    assert spec_from_pb(sent()).device is Device.ANY
    assert spec_from_pb(sent(device=sent.DEVICE_CPU)).device is Device.CPU
    assert spec_from_pb(sent(device=sent.DEVICE_CUDA)).device is Device.CUDA


@pytest.mark.usefixtures("two_gpus")
def test_each_process_of_a_job_has_a_gpu_of_its_own_where_there_are_enough() -> None:
    for wanted in (Device.ANY, Device.CUDA):
        assert device_for(wanted, rank=1, count=2) == SECOND_GPU
    assert device_for(Device.CPU, rank=1, count=2) == CPU


@pytest.mark.usefixtures("two_gpus")
def test_a_job_that_does_not_ask_for_gpus_does_without_when_they_are_too_few() -> None:
    assert device_for(Device.ANY, rank=1, count=3) == CPU


@pytest.mark.usefixtures("two_gpus")
def test_a_job_that_asks_for_gpus_fails_when_they_are_too_few() -> None:
    with pytest.raises(
        DeviceUnavailable, match=r"expected 3, one for each process of the job, got 2; "
    ):
        device_for(Device.CUDA, count=3)
    assert DeviceUnavailable.reason is FailureReason.DEVICE_UNAVAILABLE


def test_the_processor_is_told_in_words() -> None:
    assert described(CPU) == "the processor"


def test_a_network_is_where_its_weights_or_statistics_are() -> None:
    assert device_of(nn.Linear(2, 2, device=META)) == META
    assert device_of(nn.BatchNorm1d(2, affine=False, device=META)) == META
    assert device_of(nn.ReLU()) == CPU


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_computes_where_its_weights_are(name: str) -> None:
    model, shape, tokens = MODELS[name]
    body = model.build(shape, 3, tokens).to(META)
    rows = torch.zeros((4, *shape), dtype=torch.int64 if tokens else torch.float32, device=META)
    outputs = body(rows)
    assert outputs.device == META
    torch.autograd.backward(outputs.sum())


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_computed_where_the_outputs_are(name: str) -> None:
    loss = LOSSES[name]
    outputs = torch.zeros((4, 2), requires_grad=True, device=META)
    if isinstance(loss, spec.RegressionLoss):
        torch.autograd.backward(loss_function(loss)(outputs, torch.zeros((4, 2), device=META)))
        return
    classes = torch.zeros(4, dtype=torch.int64, device=META)
    assert loss_function(loss)(outputs, classes).device == META
    at_places = at_each_place(loss_function(loss))
    torch.autograd.backward(at_places(outputs[:, None], classes[:, None]))


def test_the_random_numbers_of_a_gpu_are_in_its_checkpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_gpu = torch.arange(16, dtype=torch.uint8)
    put_back = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: of_gpu)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *state: put_back.append(state))
    on_gpu = Replicas(device=SECOND_GPU)
    states = on_gpu.random_states()
    assert set(states) == {"random.torch", "random.cuda"}
    drawn = torch.rand(3)
    on_gpu.restore_random(states, seed=1)
    assert torch.equal(torch.rand(3), drawn)
    assert put_back == [(of_gpu, SECOND_GPU)]


def test_a_checkpoint_without_the_random_numbers_of_the_gpu_begins_new_ones() -> None:
    of_processor = Replicas().random_states()
    assert set(of_processor) == {"random.torch"}
    Replicas(device=SECOND_GPU).restore_random(of_processor, seed=5)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
