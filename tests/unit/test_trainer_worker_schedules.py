from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.worker import data
from modelrail_trainer.worker.learning import loop
from modelrail_trainer.worker.learning.schedules import learning_rate_factor

STEPS_PER_EPOCH = 4
STEPS = 40
GOOD = spec.TrainingJobSpec(
    dataset=spec.LineDataset(slope=0.5, intercept=1.0, points=60, noise_stddev=0.1),
    model=spec.LinearModel(),
    loss=spec.MeanSquaredError(),
    optimizer=spec.Sgd(learning_rate=0.1),
    epochs=4,
    batch_size=16,
    publication=spec.Publication(model="line"),
)


def _factors(schedule: spec.Schedule) -> list[float]:
    return [
        learning_rate_factor(schedule, step, steps_per_epoch=STEPS_PER_EPOCH, steps=STEPS)
        for step in range(STEPS)
    ]


def _torch_factors(
    scheduler_of: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler],
) -> list[float]:
    """The learning rates that a scheduler of torch gives step by step, from a rate of 1."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimiser)
    factors = []
    for _ in range(STEPS):
        factors.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        scheduler.step()
    return factors


def test_without_a_schedule_the_learning_rate_stays() -> None:
    assert _factors(spec.Schedule()) == [1.0] * STEPS


def test_the_step_schedule_is_that_of_torch() -> None:
    ours = _factors(spec.Schedule(kind=spec.StepSchedule(every_epochs=3, factor=0.5)))
    theirs = _torch_factors(
        lambda optimiser: lr_scheduler.StepLR(optimiser, 3 * STEPS_PER_EPOCH, gamma=0.5)
    )
    assert ours == pytest.approx(theirs)
    assert (ours[11], ours[12]) == (1.0, 0.5)


def test_the_cosine_schedule_is_that_of_torch() -> None:
    ours = _factors(spec.Schedule(kind=spec.CosineSchedule(final_fraction=0.1)))
    theirs = _torch_factors(
        lambda optimiser: lr_scheduler.CosineAnnealingLR(optimiser, STEPS, eta_min=0.1)
    )
    assert ours == pytest.approx(theirs)


def test_the_warm_up_grows_evenly_and_the_whole_wave_follows_it() -> None:
    schedule = spec.Schedule(kind=spec.CosineSchedule(final_fraction=0.2), warmup_steps=4)
    factors = _factors(schedule)
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[4 + 18] == pytest.approx(0.6)  # the middle of the wave
    after_the_end = learning_rate_factor(
        schedule, STEPS, steps_per_epoch=STEPS_PER_EPOCH, steps=STEPS
    )
    assert after_the_end == pytest.approx(0.2)


def test_the_warm_up_goes_before_steps_too() -> None:
    schedule = spec.Schedule(
        kind=spec.StepSchedule(every_epochs=1, factor=0.5), warmup_steps=2 * STEPS_PER_EPOCH
    )
    assert _factors(schedule)[: 2 * STEPS_PER_EPOCH + 1] == pytest.approx(
        [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 16, 6 / 16, 7 / 16, 8 / 16, 1 / 4]
    )


def test_a_warm_up_longer_than_the_training_is_a_ramp() -> None:
    schedule = spec.Schedule(kind=spec.CosineSchedule(), warmup_steps=2 * STEPS)
    assert _factors(schedule) == pytest.approx([(step + 1) / 80 for step in range(STEPS)])


OPTIMISERS = [spec.GradientDescent(learning_rate=0.1), spec.Sgd(learning_rate=0.1), spec.Adam()]


@pytest.mark.parametrize("optimizer", OPTIMISERS, ids=["descent", "sgd", "adam"])
def test_the_loop_makes_each_step_with_the_rate_of_its_schedule(optimizer: spec.Optimizer) -> None:
    # A factor of 1e-12 from the second epoch on leaves the weights where the first epoch put them.
    shape = spec.StepSchedule(every_epochs=1, factor=1e-12)
    scheduled = replace(GOOD, optimizer=optimizer, schedule=spec.Schedule(kind=shape))
    after_one_epoch = _weights(replace(scheduled, epochs=1))
    for ours, first in zip(_weights(scheduled), after_one_epoch, strict=True):
        torch.testing.assert_close(ours, first, atol=1e-9, rtol=0)
    unscheduled = _weights(replace(GOOD, optimizer=optimizer))
    assert not torch.allclose(unscheduled[0], after_one_epoch[0], atol=1e-4)


def test_the_rate_of_each_step_is_a_fraction_of_the_first_and_not_of_the_last() -> None:
    # Full-batch descent on a line, written down once more.
    descent = replace(GOOD, optimizer=spec.GradientDescent(learning_rate=0.1))
    shape = spec.StepSchedule(every_epochs=1, factor=0.5)
    weight, bias = (float(number) for number in _start(descent))
    train = data.load(descent).train
    for epoch in range(descent.epochs):
        errors = weight * train.inputs + bias - train.targets
        gradients = (2 * errors * train.inputs).mean(), (2 * errors).mean()
        weight -= 0.1 * 0.5**epoch * gradients[0]
        bias -= 0.1 * 0.5**epoch * gradients[1]
    ours = _weights(replace(descent, schedule=spec.Schedule(kind=shape)))
    assert [tensor.item() for tensor in ours] == pytest.approx([weight, bias], abs=1e-5)


def test_a_schedule_that_never_changes_the_rate_changes_no_bit() -> None:
    shape = spec.CosineSchedule(final_fraction=1.0)
    constant = _weights(replace(GOOD, schedule=spec.Schedule(kind=shape)))
    for ours, theirs in zip(constant, _weights(GOOD), strict=True):
        assert torch.equal(ours, theirs)


def test_a_gradient_longer_than_allowed_is_shortened_and_keeps_its_direction() -> None:
    # One step of gradient descent moves the weights by the learning rate times the gradient.
    descent = replace(GOOD, optimizer=spec.GradientDescent(learning_rate=1.0), epochs=1)
    start = _start(descent)
    whole = torch.cat([w.flatten() for w in _weights(descent)]) - start
    assert whole.norm() > 0.1
    clipped = torch.cat([w.flatten() for w in _weights(replace(descent, max_gradient_norm=0.1))])
    torch.testing.assert_close(clipped - start, 0.1 * whole / whole.norm(), atol=1e-5, rtol=0)
    longer = float(whole.norm()) * 2
    for ours, theirs in zip(
        _weights(replace(descent, max_gradient_norm=longer)), _weights(descent), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pb.TrainingJobSpec(), spec.Schedule()),
        (pb.TrainingJobSpec(schedule=pb.Schedule(constant={})), spec.Schedule()),
        (
            pb.TrainingJobSpec(
                schedule=pb.Schedule(
                    step=pb.StepSchedule(every_epochs=2, factor=0.5), warmup_steps=3
                )
            ),
            spec.Schedule(kind=spec.StepSchedule(every_epochs=2, factor=0.5), warmup_steps=3),
        ),
        (
            pb.TrainingJobSpec(schedule=pb.Schedule(cosine=pb.CosineSchedule(final_fraction=0.25))),
            spec.Schedule(kind=spec.CosineSchedule(final_fraction=0.25)),
        ),
    ],
)
def test_a_schedule_is_read_from_the_wire(
    message: pb.TrainingJobSpec, expected: spec.Schedule
) -> None:
    assert spec_from_pb(message).schedule == expected


def test_the_longest_gradient_is_read_from_the_wire() -> None:
    assert spec_from_pb(pb.TrainingJobSpec(max_gradient_norm=2.5)).max_gradient_norm == 2.5


STEP = spec.StepSchedule(every_epochs=1, factor=0.5)


@pytest.mark.parametrize(
    ("schedule", "field"),
    [
        (spec.Schedule(kind=replace(STEP, every_epochs=0)), "schedule.step.every_epochs"),
        (spec.Schedule(kind=replace(STEP, factor=0.0)), "schedule.step.factor"),
        (spec.Schedule(kind=replace(STEP, factor=1.1)), "schedule.step.factor"),
        (
            spec.Schedule(kind=spec.CosineSchedule(final_fraction=1.1)),
            "schedule.cosine.final_fraction",
        ),
        (spec.Schedule(warmup_steps=-1), "schedule.warmup_steps"),
    ],
)
def test_a_schedule_that_cannot_be_names_its_field(schedule: spec.Schedule, field: str) -> None:
    wrong = validate(replace(GOOD, schedule=schedule))
    assert [violation.field for violation in wrong] == [field]


@pytest.mark.parametrize("length", [-1.0, float("nan"), float("inf")])
def test_a_length_that_is_none_names_its_field(length: float) -> None:
    wrong = validate(replace(GOOD, max_gradient_norm=length))
    assert [violation.field for violation in wrong] == ["max_gradient_norm"]


def _weights(job: spec.TrainingJobSpec) -> list[Tensor]:
    network = loop.fit(job, data.load(job), lambda _: None).network
    return [parameter.detach().clone() for parameter in network.parameters()]


def _start(job: spec.TrainingJobSpec) -> Tensor:
    """The weights before the first step: those after a step of no length."""
    unmoved = replace(job, optimizer=spec.GradientDescent(learning_rate=0.0))
    return torch.cat([weight.flatten() for weight in _weights(unmoved)])
