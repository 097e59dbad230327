from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.worker import data
from modelrail_trainer.worker.learning import loop
from modelrail_trainer.worker.learning.evaluate import evaluate, torch_predict
from modelrail_trainer.worker.learning.selection import BestEpoch

LINE = spec.TrainingJobSpec(
    dataset=spec.LineDataset(slope=0.5, intercept=1.0, points=60, noise_stddev=0.3),
    model=spec.MlpModel(hidden_units=(16,)),
    loss=spec.MeanSquaredError(),
    # Steps so long that the loss jumps up and down: the last epoch is not the best.
    optimizer=spec.Adam(learning_rate=0.3),
    epochs=30,
    batch_size=8,
    publication=spec.Publication(model="line"),
)


def _best_after(selection: spec.Selection, figures: list[float]) -> tuple[int, int, float]:
    """The best epoch, the epoch that ends training, and the weight that is kept."""
    network = nn.Linear(1, 1)
    best = BestEpoch(selection)
    last = 0
    for number, figure in enumerate(figures, start=1):
        last = number
        with torch.no_grad():
            network.weight.fill_(number)
        best.consider(number, {selection.metric: figure}, network)
        if best.gives_up(number):
            break
    best.restore(network)
    return best.number, last, network.weight.item()


def test_the_weights_of_the_epoch_with_the_lowest_loss_are_kept() -> None:
    assert _best_after(spec.Selection(), [3.0, 1.0, 2.0]) == (2, 3, 2.0)


def test_the_weights_of_the_epoch_with_the_highest_accuracy_are_kept() -> None:
    assert _best_after(spec.Selection(metric="accuracy"), [0.1, 0.9, 0.3]) == (2, 3, 2.0)


def test_of_two_equal_epochs_the_first_is_the_best() -> None:
    assert _best_after(spec.Selection(), [3.0, 1.0, 1.0]) == (2, 3, 2.0)


def test_the_last_weights_are_kept_on_request() -> None:
    assert _best_after(spec.Selection(keep_last=True), [3.0, 1.0, 2.0]) == (2, 3, 3.0)


def test_training_ends_when_the_patience_is_used_up() -> None:
    figures = [5.0, 4.0, 6.0, 3.0, 3.5, 3.0, 1.0]
    assert _best_after(spec.Selection(patience_epochs=2), figures) == (4, 6, 4.0)
    assert _best_after(spec.Selection(patience_epochs=1), figures) == (2, 3, 2.0)
    assert _best_after(spec.Selection(patience_epochs=3), figures) == (7, 7, 7.0)


@pytest.mark.parametrize("metric", ["loss", "mae"])
def test_a_fit_returns_the_network_of_its_best_epoch(metric: str) -> None:
    job = replace(LINE, selection=spec.Selection(metric=metric))
    rows, epochs = data.load(job), list[loop.Epoch]()
    trained = loop.fit(job, rows, epochs.append)
    figures = [epoch.validation[metric] for epoch in epochs]
    assert trained.best_figure == min(figures) < figures[-1]
    assert trained.best_epoch == figures.index(min(figures)) + 1
    again = evaluate(torch_predict(trained.network), rows.validation, rows.task)
    assert again[metric] == min(figures)
    assert not trained.network.training


def test_a_fit_returns_the_network_of_its_last_epoch_on_request() -> None:
    job = replace(LINE, selection=spec.Selection(keep_last=True))
    rows, epochs = data.load(job), list[loop.Epoch]()
    trained = loop.fit(job, rows, epochs.append)
    again = evaluate(torch_predict(trained.network), rows.validation, rows.task)
    assert again == epochs[-1].validation


def test_a_fit_that_ends_early_tells_it_and_equals_one_of_so_many_epochs() -> None:
    job = replace(LINE, selection=spec.Selection(patience_epochs=4))
    epochs: list[loop.Epoch] = []
    trained = loop.fit(job, data.load(job), epochs.append)
    assert trained.epochs == trained.best_epoch + 4 == len(epochs) < 30
    assert trained.step == epochs[-1].step
    shorter = loop.fit(replace(LINE, epochs=trained.best_epoch), data.load(job), lambda _: None)
    weights, others = trained.network.state_dict(), shorter.network.state_dict()
    assert all(_bits(weights[name]) == _bits(others[name]) for name in weights)


def test_a_selection_is_read_from_the_wire_with_its_defaults() -> None:
    plain = spec.with_defaults(spec_from_pb(pb.TrainingJobSpec()))
    assert plain.selection == spec.Selection()
    message = pb.Selection(metric="mae", patience_epochs=3, keep_last=True)
    chosen = spec.with_defaults(spec_from_pb(pb.TrainingJobSpec(selection=message)))
    assert chosen.selection == spec.Selection(metric="mae", patience_epochs=3, keep_last=True)


@pytest.mark.parametrize(
    ("selection", "field"),
    [
        (spec.Selection(metric="accuracy"), "selection.metric"),
        (spec.Selection(metric="beauty"), "selection.metric"),
        (spec.Selection(patience_epochs=-1), "selection.patience_epochs"),
    ],
)
def test_a_selection_that_cannot_be_names_its_field(selection: spec.Selection, field: str) -> None:
    wrong = validate(replace(LINE, selection=selection))
    assert [violation.field for violation in wrong] == [field]


def test_every_metric_that_can_be_selected_by_is_measured() -> None:
    digits = replace(
        LINE,
        dataset=spec.BundledDataset(name="digits"),
        model=spec.LinearModel(),
        loss=spec.CrossEntropy(),
    )
    for job in (LINE, digits):
        rows = data.load(job)
        epochs: list[loop.Epoch] = []
        loop.fit(replace(job, epochs=1), rows, epochs.append)
        assert set(spec.SELECTION_METRICS[rows.task]) == set(epochs[0].validation)


def _bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
