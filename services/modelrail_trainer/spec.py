"""What a training job does, as plain data.

The classes mirror `modelrail.trainer.v1.TrainingJobSpec`. Zeros that mean a default may stand in
them as they came over the wire; `with_defaults` puts the real values in. Neither torch nor protobuf
nor gRPC is imported here, because the service, which validates, must start without them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Task(StrEnum):
    """What a model answers: one of a set of classes, or numbers."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What is known about a data set before it is read.

    Attributes:
        task: What is learned from it.
        rows: Number of rows.
        row_shape: Shape of one input row, without the batch axis.
        outputs: Number of classes, or of predicted values.
        tokens: Size of the vocabulary, padding 0 included, when rows [T] are tokens; 0 when they
            are numbers.
    """

    task: Task
    rows: int
    row_shape: tuple[int, ...]
    outputs: int
    tokens: int = 0


BUNDLED_DATASETS = {
    "digits": DatasetFacts(task=Task.CLASSIFICATION, rows=1797, row_shape=(8, 8), outputs=10)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledDataset:
    """A data set that comes with the trainer, by name."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineDataset:
    """Points (x, slope · x + intercept + noise), with x evenly spaced."""

    slope: float
    intercept: float
    points: int
    minimum_x: float = -1.0
    maximum_x: float = 1.0
    noise_stddev: float = 0.0


class Missing(StrEnum):
    """What stands in for a missing number."""

    MEAN = "mean"
    CONSTANT = "constant"
    REFUSED = "refused"


class Scale(StrEnum):
    """How a number is scaled."""

    STANDARDIZED = "standardized"
    MIN_MAX = "min_max"
    NONE = "none"


class CategoryMethod(StrEnum):
    """How a text becomes numbers."""

    ONE_HOT = "one_hot"
    ORDINAL = "ordinal"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberEncoding:
    """A number becomes one feature, or two with an indicator."""

    missing: Missing = Missing.MEAN
    constant: float = 0.0
    missing_indicator: bool = False
    log: bool = False
    scale: Scale = Scale.STANDARDIZED


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryEncoding:
    """A text becomes a feature for each of the most frequent texts, or one number."""

    method: CategoryMethod = CategoryMethod.ONE_HOT
    max_categories: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """One column to predict from; without an encoding it gets the default of its type."""

    name: str
    encoding: NumberEncoding | CategoryEncoding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDataset:
    """Rows of a table in files. Fields as in `modelrail.trainer.v1.TableDataset`."""

    paths: tuple[str, ...]
    target: str
    columns: tuple[TableColumn, ...] = ()
    skip_unusable_rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How the rows are divided. What the fractions leave is the training part."""

    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Standardize:
    """Subtract the training rows' mean and divide by their standard deviation, for each feature."""


@dataclass(frozen=True, slots=True)
class MinMaxScale:
    """Map the training rows' smallest and largest value, over all features, to 0 and 1."""


@dataclass(frozen=True, slots=True)
class LinearModel:
    """One affine map: linear regression, or logistic regression with a loss for classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpModel:
    """A multi-layer perceptron with ReLU between the layers."""

    hidden_units: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnModel:
    """Blocks of convolution, ReLU and maximum pooling, then a perceptron with one hidden layer."""

    channels: tuple[int, ...]
    hidden_units: int = 64
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetModel:
    """Stages of residual blocks with batch normalization, then the mean over the image."""

    channels: tuple[int, ...]
    blocks_per_stage: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GruModel:
    """Gated recurrent units over embedded tokens."""

    embedding_size: int = 32
    hidden_units: int = 64
    layers: int = 1
    bidirectional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerModel:
    """A transformer's encoder over embedded tokens, then the mean over the row."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    feed_forward: int = 256
    dropout: float = 0.0


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
    Task.CLASSIFICATION: ("loss", "accuracy"),
    Task.REGRESSION: ("loss", "mse", "mae"),
}
HIGHER_IS_BETTER = frozenset({"accuracy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which epoch's weights are exported, and when training ends early."""

    metric: str = "loss"
    patience_epochs: int = 0
    keep_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What is published: a version of `model`; `alias` moves to it unless that is empty."""

    model: str
    alias: str = ""
    description: str = ""


# None stands for a oneof in which nothing was set; `validate` refuses it.
Dataset = BundledDataset | LineDataset | TableDataset | None
Preprocessing = Standardize | MinMaxScale | None
Model = LinearModel | MlpModel | CnnModel | ResNetModel | GruModel | TransformerModel | None
RegressionLoss = MeanSquaredError | MeanAbsoluteError | Huber
ClassificationLoss = CrossEntropy | BinaryCrossEntropy | KlDivergence
Loss = RegressionLoss | ClassificationLoss | None
Optimizer = GradientDescent | Sgd | Adam | AdamW | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJobSpec:
    """One run from a data set to a model version.

    Fields as in `modelrail.trainer.v1.TrainingJobSpec`.
    """

    dataset: Dataset
    model: Model
    loss: Loss
    optimizer: Optimizer
    epochs: int
    publication: Publication
    display_name: str = ""
    split: Split = Split()
    preprocessing: tuple[Preprocessing, ...] = ()
    batch_size: int = 32
    seed: int = 0
    log_every_epochs: int = 1
    schedule: Schedule = Schedule()
    max_gradient_norm: float = 0.0
    selection: Selection = Selection()
    checkpoint_every_steps: int = 0


def with_defaults(spec: TrainingJobSpec) -> TrainingJobSpec:
    """Returns the specification with every zero that means a default replaced by it. Idempotent."""
    dataset, model, loss, optimizer = spec.dataset, spec.model, spec.loss, spec.optimizer
    if isinstance(dataset, LineDataset) and dataset.minimum_x == dataset.maximum_x == 0:
        dataset = replace(dataset, minimum_x=-1.0, maximum_x=1.0)
    if isinstance(model, CnnModel):
        model = replace(model, hidden_units=model.hidden_units or 64)
    if isinstance(model, ResNetModel):
        model = replace(model, blocks_per_stage=model.blocks_per_stage or 2)
    if isinstance(model, GruModel):
        model = replace(
            model,
            embedding_size=model.embedding_size or 32,
            hidden_units=model.hidden_units or 64,
            layers=model.layers or 1,
        )
    if isinstance(model, TransformerModel):
        width = model.width or 64
        model = replace(
            model,
            width=width,
            layers=model.layers or 2,
            heads=model.heads or 4,
            feed_forward=model.feed_forward or 4 * width,
        )
    if isinstance(loss, Huber):
        loss = replace(loss, delta=loss.delta or 1.0)
    if isinstance(loss, KlDivergence):
        loss = replace(loss, temperature=loss.temperature or 0.2)
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
    return replace(
        spec,
        dataset=dataset,
        model=model,
        loss=loss,
        optimizer=optimizer,
        split=replace(
            spec.split,
            validation_fraction=spec.split.validation_fraction or 0.15,
            test_fraction=spec.split.test_fraction or 0.15,
        ),
        batch_size=spec.batch_size or 32,
        log_every_epochs=spec.log_every_epochs or 1,
        selection=replace(spec.selection, metric=spec.selection.metric or "loss"),
    )


def facts_of(dataset: Dataset) -> DatasetFacts | None:
    """Returns what is known about a data set before it is read; None when nothing is."""
    match dataset:
        case BundledDataset(name=name):
            return BUNDLED_DATASETS.get(name)
        case LineDataset(points=points):
            return DatasetFacts(task=Task.REGRESSION, rows=points, row_shape=(1,), outputs=1)
        case TableDataset() | None:
            return None


def body_outputs(loss: Loss, outputs: int) -> int:
    """Returns how many numbers an architecture gives for a row; binary cross-entropy needs one."""
    return 1 if isinstance(loss, BinaryCrossEntropy) else outputs
