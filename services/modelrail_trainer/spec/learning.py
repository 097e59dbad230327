"""What is minimised, how, and which epoch is the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from modelrail_trainer.facts import DatasetFacts, Task
from modelrail_trainer.rules.bounds import Fraction, Real


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
    label_smoothing: Fraction = 0.0


@dataclass(frozen=True, slots=True)
class MeanAbsoluteError:
    """Mean of |prediction - target|."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Huber:
    """Squared error up to `delta`, absolute error beyond."""

    delta: Annotated[float, Real("an error above 0", above=0.0)] = 1.0


@dataclass(frozen=True, slots=True)
class BinaryCrossEntropy:
    """Mean of -log p(class) for two classes, from one logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KlDivergence:
    """Mean of KL(softmax(one-hot target / temperature), prediction)."""

    # The targets are one-hot long before; far below, 1 / temperature is no float32.
    temperature: Annotated[float, Real("a temperature of at least 0.001", least=0.001)] = 0.2


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
    """How the learning rate changes: a ramp of `warmup_steps`, then what `kind` says."""

    kind: ConstantSchedule | StepSchedule | CosineSchedule = ConstantSchedule()
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


RegressionLoss = MeanSquaredError | MeanAbsoluteError | Huber
ClassificationLoss = CrossEntropy | BinaryCrossEntropy | KlDivergence
Loss = RegressionLoss | ClassificationLoss

LOSSES: Mapping[str, type[Loss]] = {
    "mse": MeanSquaredError,
    "mae": MeanAbsoluteError,
    "huber": Huber,
    "cross_entropy": CrossEntropy,
    "bce": BinaryCrossEntropy,
    "kl": KlDivergence,
}
"""By their names in a specification."""


def body_outputs(loss: Loss | None, outputs: int) -> int:
    """Returns how many numbers an architecture gives for a row; binary cross-entropy needs one."""
    return 1 if isinstance(loss, BinaryCrossEntropy) else outputs
