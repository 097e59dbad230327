"""Rules about losses, optimisers and how long and with what steps is trained."""

from __future__ import annotations

from collections.abc import Iterator

from modelrail_trainer.rules.bounds import name_of, violations_of_one
from modelrail_trainer.rules.custom import check_import, is_import
from modelrail_trainer.rules.violation import Violation, real, shown, whole
from modelrail_trainer.spec import (
    LOSSES,
    OPTIMIZERS,
    BinaryCrossEntropy,
    CosineSchedule,
    CrossEntropy,
    DatasetFacts,
    Loss,
    RegressionLoss,
    Schedule,
    Selection,
    StepSchedule,
    Task,
    TrainingJobSpec,
    selection_metrics,
)

MAX_EPOCHS = 100_000


def check_learning(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    """Finds what is wrong with `loss`, `optimizer` and the fields that steer them."""
    if is_import(spec):
        if spec.loss is not None:
            yield from _check_loss(spec.loss, facts)
        yield from check_import(spec)
    else:
        yield from _check_loss(spec.loss, facts)
        yield from violations_of_one("optimizer", OPTIMIZERS, spec.optimizer)
        yield from whole("epochs", spec.epochs, 1, MAX_EPOCHS)
    yield from whole("batch_size", spec.batch_size, 1)
    yield from whole("seed", spec.seed, 0)
    yield from whole("log_every_epochs", spec.log_every_epochs, 1)
    yield from _check_schedule(spec.schedule)
    yield from real(
        "max_gradient_norm", spec.max_gradient_norm, "a finite length from 0", least=0.0
    )
    yield from _check_selection(spec.selection, facts)
    yield from whole("checkpoint_every_steps", spec.checkpoint_every_steps, 0)
    yield from whole("validate_every_steps", spec.validate_every_steps, 0)


def _check_loss(loss: Loss | None, facts: DatasetFacts | None) -> Iterator[Violation]:
    if loss is not None and facts and (wrong := _unfitting(loss, facts)):
        yield wrong
        return
    yield from violations_of_one("loss", LOSSES, loss)
    match loss:
        case CrossEntropy(class_weights=weights):
            if weights and facts and len(weights) != facts.outputs:
                yield Violation(
                    "loss.cross_entropy.class_weights",
                    f"expected no weight or one for each of the {facts.outputs} classes, "
                    f"got {len(weights)}",
                )
            for position, weight in enumerate(weights):
                field = f"loss.cross_entropy.class_weights[{position}]"
                if wrong_weight := list(real(field, weight, "a weight above 0", above=0.0)):
                    yield from wrong_weight
                    break  # there may be thousands
        case BinaryCrossEntropy() if facts and facts.outputs != 2:
            yield Violation("loss.bce", f"expected two classes, got {facts.outputs}")
        case _:
            pass


def _unfitting(loss: Loss, facts: DatasetFacts) -> Violation | None:
    """Returns why a loss is none for a data set, or None."""
    name = name_of(LOSSES, loss)
    regression = isinstance(loss, RegressionLoss)
    if regression != (facts.task is Task.REGRESSION):
        fitting, data = (
            ("cross_entropy, bce, kl", "a data set of classes")
            if regression
            else ("mse, mae, huber", "a regression data set")
        )
        return Violation("loss", f"expected one of {fitting} for {data}, got {name}")
    if facts.task is Task.LANGUAGE and not isinstance(loss, CrossEntropy):
        return Violation("loss", f"expected cross_entropy for a data set of lines, got {name}")
    return None


def _check_schedule(schedule: Schedule) -> Iterator[Violation]:
    match schedule.kind:
        case StepSchedule(every_epochs=every, factor=factor):
            yield from whole("schedule.step.every_epochs", every, 1)
            expected = "a factor above 0 and at most 1"
            yield from real("schedule.step.factor", factor, expected, above=0.0, most=1.0)
        case CosineSchedule(final_fraction=final):
            expected = "a fraction in [0, 1]"
            yield from real("schedule.cosine.final_fraction", final, expected, least=0.0, most=1.0)
        case _:
            pass
    yield from whole("schedule.warmup_steps", schedule.warmup_steps, 0)


def _check_selection(selection: Selection, facts: DatasetFacts | None) -> Iterator[Violation]:
    if facts and selection.metric not in selection_metrics(facts):
        known = ", ".join(selection_metrics(facts))
        yield Violation(
            "selection.metric", f"expected one of: {known}; got {shown(selection.metric)}"
        )
    yield from whole("selection.patience_epochs", selection.patience_epochs, 0)
