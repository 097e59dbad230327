"""Rules about losses, optimisers and how long and with what steps is trained."""

from __future__ import annotations

from collections.abc import Iterator

from modelrail_trainer.rules.custom import check_import, is_import
from modelrail_trainer.rules.violation import Violation, nothing_set, real, shown, whole
from modelrail_trainer.spec import (
    Adam,
    AdamW,
    BinaryCrossEntropy,
    CosineSchedule,
    CrossEntropy,
    DatasetFacts,
    GradientDescent,
    Huber,
    KlDivergence,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    Optimizer,
    RegressionLoss,
    Schedule,
    Selection,
    Sgd,
    StepSchedule,
    Task,
    TrainingJobSpec,
    selection_metrics,
)

MAX_EPOCHS = 100_000

_LOSS_NAMES: dict[type, str] = {
    MeanSquaredError: "mse",
    MeanAbsoluteError: "mae",
    Huber: "huber",
    CrossEntropy: "cross_entropy",
    BinaryCrossEntropy: "bce",
    KlDivergence: "kl",
}


def check_learning(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    """Finds what is wrong with `loss`, `optimizer` and the fields that steer them."""
    if is_import(spec):
        if spec.loss is not None:
            yield from _check_loss(spec.loss, facts)
        yield from check_import(spec)
    else:
        yield from _check_loss(spec.loss, facts)
        yield from _check_optimizer(spec.optimizer)
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


def _check_loss(loss: Loss, facts: DatasetFacts | None) -> Iterator[Violation]:
    if loss is None:
        yield nothing_set("loss", *_LOSS_NAMES.values())
        return
    name = _LOSS_NAMES[type(loss)]
    regression = isinstance(loss, RegressionLoss)
    if facts and regression != (facts.task is Task.REGRESSION):
        fitting, data = (
            ("cross_entropy, bce, kl", "a data set of classes")
            if regression
            else ("mse, mae, huber", "a regression data set")
        )
        yield Violation("loss", f"expected one of {fitting} for {data}, got {name}")
        return
    if facts and facts.task is Task.LANGUAGE and not isinstance(loss, CrossEntropy):
        yield Violation("loss", f"expected cross_entropy for a data set of lines, got {name}")
        return
    match loss:
        case CrossEntropy(class_weights=weights, label_smoothing=smoothing):
            if weights and facts and len(weights) != facts.outputs:
                yield Violation(
                    "loss.cross_entropy.class_weights",
                    f"expected no weight or one for each of the {facts.outputs} classes, "
                    f"got {len(weights)}",
                )
            for position, weight in enumerate(weights):
                field = f"loss.cross_entropy.class_weights[{position}]"
                if wrong := list(real(field, weight, "a weight above 0", above=0.0)):
                    yield from wrong
                    break  # there may be thousands
            yield from real(
                "loss.cross_entropy.label_smoothing",
                smoothing,
                "a fraction in [0, 1)",
                least=0.0,
                below=1.0,
            )
        case Huber(delta=delta):
            yield from real("loss.huber.delta", delta, "an error above 0", above=0.0)
        case BinaryCrossEntropy() if facts and facts.outputs != 2:
            yield Violation("loss.bce", f"expected two classes, got {facts.outputs}")
        case KlDivergence(temperature=temperature):
            # The targets are one-hot long before; far below, 1 / temperature is no float32.
            yield from real(
                "loss.kl.temperature", temperature, "a temperature of at least 0.001", least=0.001
            )
        case _:
            pass


def _check_optimizer(optimizer: Optimizer) -> Iterator[Violation]:
    rate = "a step size above 0"
    decay = "a finite number from 0"
    match optimizer:
        case None:
            yield nothing_set("optimizer", "gradient_descent", "sgd", "adam", "adamw")
        case GradientDescent(learning_rate=learning_rate):
            yield from real(
                "optimizer.gradient_descent.learning_rate", learning_rate, rate, above=0.0
            )
        case Sgd() as sgd:
            path = "optimizer.sgd"
            yield from real(f"{path}.learning_rate", sgd.learning_rate, rate, above=0.0)
            yield from real(
                f"{path}.momentum", sgd.momentum, "a fraction in [0, 1)", least=0.0, below=1.0
            )
            yield from real(f"{path}.weight_decay", sgd.weight_decay, decay, least=0.0)
        case Adam() | AdamW() as adam:
            path = "optimizer.adamw" if isinstance(adam, AdamW) else "optimizer.adam"
            yield from real(f"{path}.learning_rate", adam.learning_rate, rate, above=0.0)
            for field in ("beta1", "beta2"):
                yield from real(
                    f"{path}.{field}",
                    getattr(adam, field),
                    "a decay above 0 and below 1",
                    above=0.0,
                    below=1.0,
                )
            yield from real(f"{path}.epsilon", adam.epsilon, "a number above 0", above=0.0)
            if isinstance(adam, AdamW):
                yield from real(f"{path}.weight_decay", adam.weight_decay, decay, least=0.0)


def _check_schedule(schedule: Schedule) -> Iterator[Violation]:
    match schedule.shape:
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
