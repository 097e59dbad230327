from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.worker import data
from modelrail_trainer.worker.export import exporter as export
from modelrail_trainer.worker.learning import loop
from modelrail_trainer.worker.learning.losses import loss_function
from modelrail_trainer.worker.network import TwoClasses
from modelrail_trainer.worker.part import Part

F = nn.functional
WEIGHTS = (0.5, 2.0, 1.0, 4.0)
CLASSES = torch.tensor([0, 1, 2, 3, 1, 0])
GOOD = spec.TrainingJobSpec(
    dataset=spec.BundledDataset(name="digits"),
    model=spec.LinearModel(),
    loss=spec.CrossEntropy(),
    optimizer=spec.Adam(learning_rate=0.05),
    epochs=20,
    batch_size=16,
    publication=spec.Publication(model="digits"),
)
LINE = spec.LineDataset(slope=0.5, intercept=1.0, points=100)


def _numbers(*shape: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def _assert_same(ours: Tensor, theirs: Tensor, argument: Tensor) -> None:
    """The value and the gradient are those of torch."""
    torch.testing.assert_close(ours, theirs)
    (our_gradient,) = torch.autograd.grad(ours, argument)
    (their_gradient,) = torch.autograd.grad(theirs, argument)
    torch.testing.assert_close(our_gradient, their_gradient)


def test_the_mean_absolute_error_is_that_of_torch() -> None:
    predictions, targets = _numbers(6, 2).requires_grad_(), _numbers(6, 2, seed=6)
    ours = loss_function(spec.MeanAbsoluteError())(predictions, targets)
    _assert_same(ours, F.l1_loss(predictions, targets), predictions)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_the_huber_loss_is_that_of_torch_near_the_target_and_far_from_it(delta: float) -> None:
    predictions, targets = _numbers(20, 2).requires_grad_(), _numbers(20, 2, seed=6)
    distances = (predictions - targets).abs()
    assert (distances < delta).any()
    assert (distances > delta).any()
    ours = loss_function(spec.Huber(delta=delta))(predictions, targets)
    _assert_same(ours, F.huber_loss(predictions, targets, delta=delta), predictions)


@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_with_weights_and_smoothing_is_that_of_torch(
    weights: tuple[float, ...], smoothing: float
) -> None:
    logits = _numbers(6, 4).requires_grad_()
    loss = spec.CrossEntropy(class_weights=weights, label_smoothing=smoothing)
    theirs = F.cross_entropy(
        logits,
        CLASSES,
        weight=torch.tensor(weights, dtype=torch.float64) if weights else None,
        label_smoothing=smoothing,
    )
    _assert_same(loss_function(loss)(logits, CLASSES), theirs, logits)


def test_binary_cross_entropy_from_one_logit_is_that_of_torch_and_survives_large_ones() -> None:
    z = torch.cat([_numbers(6, 1), torch.tensor([[800.0], [-800.0]])]).requires_grad_()  # [8, 1]
    classes = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
    ours = loss_function(spec.BinaryCrossEntropy())(TwoClasses()(z), classes)
    theirs = F.binary_cross_entropy_with_logits(z.squeeze(1), classes.double())
    assert theirs.item() >= 200
    _assert_same(ours, theirs, z)


def test_the_softmax_of_the_two_logits_is_the_sigmoid_of_the_one() -> None:
    z = _numbers(6, 1)
    probabilities = TwoClasses()(z).softmax(dim=1)
    torch.testing.assert_close(probabilities[:, 1:], z.sigmoid())
    torch.testing.assert_close(probabilities[:, :1], (-z).sigmoid())


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_divergence_from_softened_targets_is_that_of_torch(temperature: float) -> None:
    logits = _numbers(6, 4).requires_grad_()
    targets = (F.one_hot(CLASSES, 4).double() / temperature).softmax(dim=1)
    ours = loss_function(spec.KlDivergence(temperature=temperature))(logits, CLASSES)
    theirs = F.kl_div(logits.log_softmax(dim=1), targets, reduction="batchmean")
    _assert_same(ours, theirs, logits)


def test_the_divergence_is_0_at_its_target_and_cross_entropy_when_cold() -> None:
    at_target = F.one_hot(CLASSES, 4).double() / 0.2
    warm = loss_function(spec.KlDivergence(temperature=0.2))
    assert warm(at_target, CLASSES).item() == pytest.approx(0.0, abs=1e-12)
    cold = loss_function(spec.KlDivergence(temperature=0.001))
    logits = _numbers(6, 4)
    torch.testing.assert_close(cold(logits, CLASSES), F.cross_entropy(logits, CLASSES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (pb.Loss(mae=pb.MeanAbsoluteError()), spec.MeanAbsoluteError()),
        (pb.Loss(huber=pb.Huber()), spec.Huber(delta=1.0)),
        (pb.Loss(huber=pb.Huber(delta=0.5)), spec.Huber(delta=0.5)),
        (pb.Loss(bce=pb.BinaryCrossEntropy()), spec.BinaryCrossEntropy()),
        (pb.Loss(kl=pb.KlDivergence()), spec.KlDivergence(temperature=0.2)),
        (pb.Loss(kl=pb.KlDivergence(temperature=2)), spec.KlDivergence(temperature=2.0)),
        (pb.Loss(cross_entropy=pb.CrossEntropy()), spec.CrossEntropy()),
        (
            pb.Loss(cross_entropy=pb.CrossEntropy(class_weights=WEIGHTS, label_smoothing=0.25)),
            spec.CrossEntropy(class_weights=WEIGHTS, label_smoothing=0.25),
        ),
    ],
)
def test_a_loss_is_read_from_the_wire_with_its_defaults(text: pb.Loss, expected: spec.Loss) -> None:
    job = spec_from_pb(pb.TrainingJobSpec(loss=text))
    assert spec.with_defaults(job).loss == expected


@pytest.mark.parametrize(
    ("dataset", "loss", "field"),
    [
        (GOOD.dataset, spec.MeanAbsoluteError(), "loss"),
        (GOOD.dataset, spec.Huber(), "loss"),
        (LINE, spec.KlDivergence(), "loss"),
        (LINE, spec.BinaryCrossEntropy(), "loss"),
        (LINE, spec.Huber(delta=-1.0), "loss.huber.delta"),
        (GOOD.dataset, spec.BinaryCrossEntropy(), "loss.bce"),
        (GOOD.dataset, spec.KlDivergence(temperature=-1.0), "loss.kl.temperature"),
        (
            GOOD.dataset,
            spec.CrossEntropy(class_weights=(1.0,) * 9),
            "loss.cross_entropy.class_weights",
        ),
        (
            GOOD.dataset,
            spec.CrossEntropy(class_weights=(*(1.0,) * 9, 0.0)),
            "loss.cross_entropy.class_weights[9]",
        ),
        (
            GOOD.dataset,
            spec.CrossEntropy(label_smoothing=1.0),
            "loss.cross_entropy.label_smoothing",
        ),
    ],
)
def test_a_loss_that_cannot_be_names_its_field(
    dataset: spec.Dataset, loss: spec.Loss, field: str
) -> None:
    wrong = validate(replace(GOOD, dataset=dataset, loss=loss))
    assert [violation.field for violation in wrong] == [field]


def test_a_loss_for_the_other_kind_of_data_is_told_which_ones_fit() -> None:
    (classes,) = validate(replace(GOOD, loss=spec.Huber()))
    assert classes.description == (
        "expected one of cross_entropy, bce, kl for a data set of classes, got huber"
    )
    (values,) = validate(replace(GOOD, dataset=LINE))
    assert values.description == (
        "expected one of mse, mae, huber for a regression data set, got cross_entropy"
    )


@pytest.mark.parametrize(
    ("dataset", "loss"),
    [
        (LINE, spec.MeanAbsoluteError()),
        (LINE, spec.Huber()),
        (GOOD.dataset, spec.KlDivergence()),
        (GOOD.dataset, spec.CrossEntropy(class_weights=(2.0,) * 10, label_smoothing=0.1)),
    ],
)
def test_a_loss_that_fits_the_data_is_good_and_falls(
    dataset: spec.Dataset, loss: spec.Loss
) -> None:
    job = replace(GOOD, dataset=dataset, loss=loss, epochs=3)
    assert validate(job) == []
    epochs: list[loop.Epoch] = []
    loop.fit(job, data.load(job), epochs.append)
    assert epochs[-1].train_loss < 0.7 * epochs[0].train_loss


def test_two_classes_are_learned_from_one_logit_and_exported_with_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = spec.DatasetFacts(task=spec.Task.CLASSIFICATION, rows=120, row_shape=(2,), outputs=2)
    monkeypatch.setitem(spec.BUNDLED_DATASETS, "halves", facts)
    inputs = np.random.default_rng(3).normal(size=(120, 2)).astype(np.float32)
    halves = Part(inputs, (inputs.sum(axis=1) > 0).astype(np.int64))
    job = replace(GOOD, dataset=spec.BundledDataset(name="halves"), loss=spec.BinaryCrossEntropy())
    assert validate(job) == []
    rows = replace(
        data.load(GOOD), train=halves, validation=halves, test=halves, outputs=2, labels=("-", "+")
    )
    epochs: list[loop.Epoch] = []
    network = loop.fit(job, rows, epochs.append).network
    assert epochs[-1].validation["accuracy"] > 0.95
    weights = {tuple(parameter.shape) for parameter in network.parameters()}
    assert weights == {(1, 2), (1,)}

    module = export.exported_module(network, rows.task)
    logits, probabilities = module(torch.from_numpy(inputs))
    assert logits.shape == probabilities.shape == (120, 2)
    assert (logits[:, 0] == 0).all()
    torch.testing.assert_close(probabilities[:, 1], logits[:, 1].sigmoid())
    export.export(module, export.signature_of(rows), rows.task)
