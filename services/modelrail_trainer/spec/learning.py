"""What is minimised, how, and which epoch is the best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from modelrail_trainer.spec.data import DatasetFacts, Task


class Precision(StrEnum):
    """What the steps of training are computed in."""

    FP32 = "fp32"
    MIXED_BF16 = "mixed_bf16"


class Device(StrEnum):
    """What the steps of training are computed on."""

    ANY = "any"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class MeanSquaredError:
    """Mean of (prediction - target)²."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """Mean of -log p(class), from logits; rows weigh as their class, targets may be smoothed."""

    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0


@dataclass(frozen=True, slots=True)
class MeanAbsoluteError:
    """Mean of |prediction - target|."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Huber:
    """Squared error up to `delta`, absolute error beyond."""

    delta: float = 1.0


@dataclass(frozen=True, slots=True)
class BinaryCrossEntropy:
    """Mean of -log p(class) for two classes, from one logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KlDivergence:
    """Mean of KL(softmax(one-hot target / temperature), prediction)."""

    temperature: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientDescent:
    """One step an epoch, along the gradient over all training rows."""

    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent on batches."""

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam on batches, with bias correction."""

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Adam with weights that shrink apart from the gradient."""

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True)
class ConstantSchedule:
    """The learning rate stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSchedule:
    """The learning rate is multiplied by `factor` every so many epochs."""

    every_epochs: int
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineSchedule:
    """The learning rate falls along half a cosine wave to a fraction of itself."""

    final_fraction: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the learning rate changes: a ramp of `warmup_steps`, then `shape`."""

    shape: ConstantSchedule | StepSchedule | CosineSchedule = ConstantSchedule()
    warmup_steps: int = 0


# What the best epoch can be told by; see `Selection`.
SELECTION_METRICS = {
    Task.CLASSIFICATION: ("loss", "accuracy", "precision", "recall", "f1"),
    Task.REGRESSION: ("loss", "mse", "mae", "rmse", "r2"),
    Task.LANGUAGE: ("loss", "perplexity", "bits_per_byte", "accuracy"),
}
# Beside these, where there are two classes.
TWO_CLASS_METRICS = ("class1_precision", "class1_recall", "class1_f1", "roc_auc")
HIGHER_IS_BETTER = frozenset(
    {"accuracy", "precision", "recall", "f1", "r2", *TWO_CLASS_METRICS},
)


def selection_metrics(facts: DatasetFacts) -> tuple[str, ...]:
    """Returns the figures by which the best epoch can be told, for a data set."""
    two_classes = facts.task is Task.CLASSIFICATION and facts.outputs == 2
    return SELECTION_METRICS[facts.task] + (TWO_CLASS_METRICS if two_classes else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which epoch's weights are exported, and when training ends early."""

    metric: str = "loss"
    patience_epochs: int = 0
    keep_last: bool = False


# None stands for a oneof in which nothing was set; `validate` refuses it.
RegressionLoss = MeanSquaredError | MeanAbsoluteError | Huber
ClassificationLoss = CrossEntropy | BinaryCrossEntropy | KlDivergence
Loss = RegressionLoss | ClassificationLoss | None
Optimizer = GradientDescent | Sgd | Adam | AdamW | None


def loss_with_defaults(loss: Loss) -> Loss:
    """Returns the loss with every zero that means a default replaced by it."""
    if isinstance(loss, Huber):
        return replace(loss, delta=loss.delta or 1.0)
    if isinstance(loss, KlDivergence):
        return replace(loss, temperature=loss.temperature or 0.2)
    return loss


def optimizer_with_defaults(optimizer: Optimizer) -> Optimizer:
    """Returns the optimiser with every zero that means a default replaced by it."""
    if isinstance(optimizer, Adam | AdamW):
        optimizer = replace(
            optimizer,
            learning_rate=optimizer.learning_rate or 0.001,
            beta1=optimizer.beta1 or 0.9,
            beta2=optimizer.beta2 or 0.999,
            epsilon=optimizer.epsilon or 1e-8,
        )
    if isinstance(optimizer, AdamW):
        optimizer = replace(optimizer, weight_decay=optimizer.weight_decay or 0.01)
    return optimizer


def body_outputs(loss: Loss, outputs: int) -> int:
    """Returns how many numbers an architecture gives for a row; binary cross-entropy needs one."""
    return 1 if isinstance(loss, BinaryCrossEntropy) else outputs
