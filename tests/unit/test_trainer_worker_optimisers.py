from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.failure import NanLoss
from modelrail_trainer.preprocessing.modules import fit_steps
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.worker import data
from modelrail_trainer.worker.learning import initialization, loop, losses
from modelrail_trainer.worker.part import Part
from modelrail_trainer.worker.training_data import TrainingData

STEPS = 10
LINE = spec.TrainingJobSpec(
    dataset=spec.LineDataset(slope=0.5, intercept=1.0, points=60, noise_stddev=0.1),
    model=spec.MlpModel(hidden_units=(5,)),
    loss=spec.MeanSquaredError(),
    optimizer=spec.Adam(learning_rate=0.01),
    epochs=3,
    batch_size=8,
    publication=spec.Publication(model="line"),
    preprocessing=(spec.Standardize(),),
)
DIGITS = replace(
    LINE,
    dataset=spec.BundledDataset(name="digits"),
    model=spec.CnnModel(channels=(4,), hidden_units=8, dropout=0.3),
    loss=spec.CrossEntropy(),
    epochs=1,
    batch_size=64,
)


def _objective(weights: Tensor) -> Tensor:
    """Curved differently along each axis, so that a wrong step cannot hide."""
    scales = torch.tensor([0.5, 2.0, 30.0], dtype=weights.dtype)
    return (scales * (weights - 1).square()).sum() + weights.sin().sum()


def _start() -> nn.Parameter:
    return nn.Parameter(torch.tensor([3.0, -2.0, 0.1], dtype=torch.float64))


def _path(optimiser_of: Callable[[nn.Parameter], object]) -> list[npt.NDArray[np.float64]]:
    """The weights after each of the steps that an optimiser makes down the objective."""
    weights = _start()
    optimiser = optimiser_of(weights)
    path = []
    for _ in range(STEPS):
        optimiser.zero_grad()  # type: ignore[attr-defined]
        _objective(weights).backward()  # type: ignore[no-untyped-call]
        optimiser.step()  # type: ignore[attr-defined]
        path.append(weights.detach().numpy().copy())
    return path


def _gradient(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 2 * np.array([0.5, 2.0, 30.0]) * (weights - 1) + np.cos(weights)


def test_gradient_descent_walks_as_the_one_of_torch() -> None:
    ours = _path(lambda weights: spec.GradientDescent(learning_rate=0.01).build([weights]))
    theirs = _path(lambda weights: torch.optim.SGD([weights], lr=0.01))
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_gradient_descent_leaves_a_parameter_without_gradient_alone() -> None:
    used, unused = _start(), _start()
    _objective(used).backward()  # type: ignore[no-untyped-call]
    spec.GradientDescent(learning_rate=0.1).build([used, unused]).step()
    assert torch.equal(unused, _start())
    assert not torch.equal(used, _start())


def test_sgd_with_momentum_keeps_to_its_formula() -> None:
    ours = _path(lambda weights: spec.Sgd(learning_rate=0.005, momentum=0.9).build([weights]))
    weights, velocity = _start().detach().numpy().copy(), np.zeros(3)
    for step in range(STEPS):
        velocity = 0.9 * velocity + _gradient(weights)
        weights = weights - 0.005 * velocity
        np.testing.assert_allclose(ours[step], weights, rtol=1e-12)


def test_adam_makes_the_published_update_with_both_bias_corrections() -> None:
    # Kingma and Ba (2015), algorithm 1, written down once more.
    rate, beta1, beta2, epsilon = 0.02, 0.8, 0.99, 1e-6
    adam = spec.Adam(learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=epsilon)
    ours = _path(lambda weights: adam.build([weights]))
    weights = _start().detach().numpy().copy()
    first, second = np.zeros(3), np.zeros(3)
    for step in range(1, STEPS + 1):
        gradient = _gradient(weights)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        first_corrected = first / (1 - beta1**step)
        second_corrected = second / (1 - beta2**step)
        weights = weights - rate * first_corrected / (np.sqrt(second_corrected) + epsilon)
        np.testing.assert_allclose(ours[step - 1], weights, rtol=1e-9)


def test_sgd_with_weight_decay_adds_it_to_the_gradient() -> None:
    sgd = spec.Sgd(learning_rate=0.005, momentum=0.5, weight_decay=0.3)
    ours = _path(lambda weights: sgd.build([weights]))
    weights, velocity = _start().detach().numpy().copy(), np.zeros(3)
    for step in range(STEPS):
        velocity = 0.5 * velocity + _gradient(weights) + 0.3 * weights
        weights = weights - 0.005 * velocity
        np.testing.assert_allclose(ours[step], weights, rtol=1e-12)


def test_adamw_makes_the_published_update_with_decay_apart_from_the_gradient() -> None:
    # Loshchilov and Hutter (2019), algorithm 2, with a schedule of 1.
    rate, beta1, beta2, epsilon, decay = 0.02, 0.8, 0.99, 1e-6, 0.4
    adamw = spec.AdamW(
        learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay
    )
    ours = _path(lambda weights: adamw.build([weights]))
    weights = _start().detach().numpy().copy()
    first, second = np.zeros(3), np.zeros(3)
    for step in range(1, STEPS + 1):
        gradient = _gradient(weights)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        adam_step = first / (1 - beta1**step) / (np.sqrt(second / (1 - beta2**step)) + epsilon)
        weights = weights - rate * adam_step - rate * decay * weights
        np.testing.assert_allclose(ours[step - 1], weights, rtol=1e-9)


_RATES: dict[str, float] = {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-4}


@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        (
            spec.Adam(**_RATES),
            lambda weights: torch.optim.Adam(
                weights, lr=0.02, betas=(0.8, 0.99), eps=1e-4, foreach=False, fused=False
            ),
        ),
        (
            spec.AdamW(**_RATES, weight_decay=0.4),
            lambda weights: torch.optim.AdamW(
                *(weights, 0.02, (0.8, 0.99), 1e-4),
                weight_decay=0.4,
                foreach=False,
                fused=False,
            ),
        ),
    ],
    ids=["adam", "adamw"],
)
def test_ten_steps_of_a_job_with_fused_kernels_are_those_of_torch_without(
    optimizer: spec.Adam | spec.AdamW,
    plain: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 37 weights in a row are more than one vector of the kernel, and no whole number of them.
    job = replace(DIGITS, model=spec.MlpModel(hidden_units=(37,)), optimizer=optimizer)
    rows = data.load(job)
    few = Part(rows.train.inputs[: STEPS * 64], rows.train.targets[: STEPS * 64])
    rows = replace(rows, train=few)
    built: list[torch.optim.Optimizer] = []
    build: Any = type(optimizer).build

    def noted(self: spec.Adam | spec.AdamW, parameters: list[nn.Parameter]) -> object:
        built.append(build(self, parameters))
        return built[-1]

    monkeypatch.setattr(type(optimizer), "build", noted)
    ours = _weights(job, rows)
    assert [group["fused"] for group in built[0].param_groups] == [True]
    monkeypatch.setattr(type(optimizer), "build", lambda _, parameters: plain(list(parameters)))
    theirs = _weights(job, rows)
    steps = {int(state["step"]) for state in built[0].state.values()}
    assert steps == {STEPS}
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pb.Optimizer(adamw=pb.AdamW()), spec.AdamW()),
        (
            pb.Optimizer(
                adamw=pb.AdamW(
                    learning_rate=0.1, beta1=0.2, beta2=0.3, epsilon=0.4, weight_decay=0.5
                )
            ),
            spec.AdamW(learning_rate=0.1, beta1=0.2, beta2=0.3, epsilon=0.4, weight_decay=0.5),
        ),
        (
            pb.Optimizer(sgd=pb.Sgd(learning_rate=0.1, momentum=0.2, weight_decay=0.3)),
            spec.Sgd(learning_rate=0.1, momentum=0.2, weight_decay=0.3),
        ),
    ],
)
def test_an_optimizer_is_read_from_the_wire_with_its_defaults(
    message: pb.Optimizer, expected: spec.Optimizer
) -> None:
    job = spec_from_pb(pb.TrainingJobSpec(optimizer=message))
    assert spec.with_defaults(job).optimizer == expected


@pytest.mark.parametrize(
    ("optimizer", "field"),
    [
        (spec.AdamW(learning_rate=-1.0), "optimizer.adamw.learning_rate"),
        (spec.AdamW(beta2=1.0), "optimizer.adamw.beta2"),
        (spec.AdamW(epsilon=-1.0), "optimizer.adamw.epsilon"),
        (spec.AdamW(weight_decay=-0.1), "optimizer.adamw.weight_decay"),
        (spec.Sgd(learning_rate=1.0, weight_decay=math.inf), "optimizer.sgd.weight_decay"),
        (spec.Sgd(learning_rate=1.0, momentum=1.0), "optimizer.sgd.momentum"),
    ],
)
def test_an_optimizer_that_cannot_be_names_its_field(optimizer: spec.Optimizer, field: str) -> None:
    wrong = validate(replace(LINE, optimizer=optimizer))
    assert [violation.field for violation in wrong] == [field]


def test_the_first_adam_step_is_as_long_as_the_learning_rate() -> None:
    # Without the correction of the second moment it would be √(1 / 0.001) ≈ 32 times as long.
    path = _path(lambda weights: spec.Adam(learning_rate=0.001).build([weights]))
    moved = np.abs(path[0] - _start().detach().numpy())
    np.testing.assert_allclose(moved, 0.001, rtol=1e-6)


def test_the_mean_squared_error_is_the_mean_of_squares() -> None:
    predictions = torch.tensor([[1.0], [2.0], [4.0]])
    targets = torch.tensor([[1.0], [0.0], [1.0]])
    loss = losses.loss_function(spec.MeanSquaredError())(predictions, targets)
    assert loss.item() == pytest.approx((0 + 4 + 9) / 3)


def test_cross_entropy_is_the_mean_surprise_and_survives_large_logits() -> None:
    cross_entropy = losses.loss_function(spec.CrossEntropy())
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    surprise = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    assert cross_entropy(logits, torch.tensor([1, 0])).item() == pytest.approx(surprise)
    huge = torch.tensor([[1e4, 0.0]])
    assert cross_entropy(huge, torch.tensor([0])).item() == 0.0
    assert cross_entropy(huge, torch.tensor([1])).item() == pytest.approx(1e4)


def test_the_losses_have_the_gradients_of_torch() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 1, 2, 3, 1, 0])
    (ours,) = torch.autograd.grad(losses.cross_entropy(logits, classes), logits)
    (theirs,) = torch.autograd.grad(nn.functional.cross_entropy(logits, classes), logits)
    torch.testing.assert_close(ours, theirs)


def test_standardising_gives_mean_0_and_deviation_1_and_keeps_a_constant_feature_finite() -> None:
    rows = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    steps = fit_steps((spec.Standardize(),), rows)
    result = steps(rows)
    torch.testing.assert_close(result.mean(dim=0), torch.zeros(2))
    torch.testing.assert_close(result.std(dim=0, correction=0), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("differ", [False, True])
def test_standardising_only_centres_a_feature_that_deviates_by_rounding(differ: bool) -> None:
    same = np.float32(9.97)
    rows = torch.full((1437, 1), float(same))
    if differ:
        rows[::2] = float(np.nextafter(same, np.float32(10)))
    assert rows.std(dim=0, correction=0) > 0
    step = fit_steps((spec.Standardize(),), rows)
    torch.testing.assert_close(step(rows + 1), torch.ones(1437, 1))


def test_min_max_scaling_maps_the_training_range_to_0_and_1() -> None:
    rows = torch.tensor([[2.0, 4.0], [10.0, 6.0]])
    steps = fit_steps((spec.MinMaxScale(),), rows)
    torch.testing.assert_close(steps(rows), torch.tensor([[0.0, 0.25], [1.0, 0.5]]))


def test_a_step_is_fitted_on_what_the_steps_before_it_make_of_the_rows() -> None:
    rows = torch.tensor([[0.0], [2.0], [10.0]])
    result = fit_steps((spec.Standardize(), spec.MinMaxScale()), rows)(rows)
    torch.testing.assert_close(result, rows / 10)


def test_preprocessing_never_sees_validation_or_test_rows() -> None:
    job = replace(LINE, preprocessing=(spec.Standardize(), spec.MinMaxScale()), epochs=1)
    rows = data.load(job)
    other = replace(
        rows,
        validation=Part(rows.validation.inputs * 100 + 7, rows.validation.targets),
        test=Part(rows.test.inputs * -50, rows.test.targets),
    )
    fitted, fitted_otherwise = (_weights(job, part) for part in (rows, other))
    names = [name for name in fitted if name.startswith("preprocessing")]
    assert len(names) == 4
    for name in fitted:  # nor does anything else that is learned
        assert torch.equal(fitted[name], fitted_otherwise[name]), name
    mean = rows.train.inputs.mean(axis=0)
    np.testing.assert_allclose(fitted["preprocessing.0.mean"].numpy(), mean, atol=1e-6)


@pytest.mark.parametrize("job", [LINE, DIGITS], ids=["line", "digits"])
def test_two_fits_of_one_specification_are_bitwise_equal(job: spec.TrainingJobSpec) -> None:
    first, second = _weights(job), _weights(job)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name


def test_another_seed_gives_other_weights() -> None:
    first, second = _weights(LINE), _weights(replace(LINE, seed=1))
    assert not torch.equal(first["body.1.weight"], second["body.1.weight"])


def test_gradient_descent_makes_one_step_an_epoch_over_all_training_rows() -> None:
    job = replace(LINE, optimizer=spec.GradientDescent(learning_rate=0.1), epochs=4)
    assert loop.fit(job, data.load(job), lambda _: None).step == 4


def test_every_epoch_is_reported_with_the_steps_so_far() -> None:
    epochs: list[loop.Epoch] = []
    rows = data.load(LINE)
    loop.fit(LINE, rows, epochs.append)
    batches = -(-len(rows.train) // 8)
    assert [(epoch.number, epoch.step) for epoch in epochs] == [
        (1, batches),
        (2, 2 * batches),
        (3, 3 * batches),
    ]
    assert all(epoch.rows_per_second > 0 for epoch in epochs)
    assert epochs[-1].train_loss < epochs[0].train_loss


def test_a_loss_that_is_no_number_stops_the_fit_and_says_where() -> None:
    job = replace(LINE, optimizer=spec.Sgd(learning_rate=1e6), epochs=50)
    epochs: list[loop.Epoch] = []
    with pytest.raises(NanLoss, match=r"^the loss became (inf|nan) in epoch \d+, step \d+"):
        loop.fit(job, data.load(job), epochs.append)
    assert len(epochs) < 50
    assert all(math.isfinite(epoch.train_loss) for epoch in epochs)


def test_a_small_model_gets_one_thread_and_a_large_one_every_processor() -> None:
    # Threads that wait for each other made small jobs on a busy machine many times slower.
    facts = spec.BUNDLED_DATASETS["digits"]
    processors = len(os.sched_getaffinity(0))
    large = replace(DIGITS, model=spec.MlpModel(hidden_units=(4096, 4096)))
    assert initialization.threads_for(DIGITS, facts) == 1
    assert initialization.threads_for(large, facts) == processors
    loop.fit(LINE, data.load(LINE), lambda _: None)
    assert torch.get_num_threads() == 1


def test_every_digit_is_in_every_part_and_no_row_in_two() -> None:
    rows = data.load(DIGITS)
    parts = (rows.train, rows.validation, rows.test)
    assert sum(len(part) for part in parts) == 1797
    assert all(set(part.targets.tolist()) == set(range(10)) for part in parts)
    # Every image of this data set is unique, so a row can be known by its pixels.
    images = [{row.tobytes() for row in part.inputs} for part in parts]
    assert sum(len(part) for part in images) == len(set.union(*images)) == 1797


def test_the_digest_follows_the_rows_and_not_their_division() -> None:
    digest = data.load(LINE).sha256
    assert data.load(replace(LINE, split=spec.Split(seed=9))).sha256 == digest
    assert data.load(replace(LINE, seed=1)).sha256 != digest  # other noise


def _weights(job: spec.TrainingJobSpec, rows: TrainingData | None = None) -> dict[str, Tensor]:
    network = loop.fit(job, rows or data.load(job), lambda _: None).network
    return {name: value.clone() for name, value in network.state_dict().items()}
