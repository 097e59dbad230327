"""Which specifications are good: every wrong field is found, not only the first.

Neither torch nor protobuf nor gRPC is imported here, because the service, which validates, must
start without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modelrail.names import InvalidName, ModelAliasName, check_id
from modelrail_trainer.spec import (
    BUNDLED_DATASETS,
    Adam,
    BundledDataset,
    CategoryEncoding,
    CnnModel,
    CrossEntropy,
    DatasetFacts,
    GradientDescent,
    LinearModel,
    LineDataset,
    MeanSquaredError,
    MlpModel,
    NumberEncoding,
    Sgd,
    TableDataset,
    Task,
    TrainingJobSpec,
    facts_of,
    parameter_count,
    with_defaults,
)

MAX_EPOCHS = 100_000
MAX_POINTS = 1_000_000
MAX_UNITS = 65_536
MAX_LAYERS = 16
MAX_CHANNELS = 4_096
MAX_BLOCKS = 8
MAX_PREPROCESSING_STEPS = 16
MAX_PATHS = 10_000
MAX_COLUMNS = 4_096
MAX_CATEGORIES = 10_000
MAX_NAME_CHARACTERS = 128
TABLE_ENDINGS = frozenset({".arrow", ".csv", ".parquet"})
MAX_DISPLAY_NAME_CHARACTERS = 256
MAX_DESCRIPTION_BYTES = 16 * 1024  # the registry's limit for the description of a version
# 4 bytes each: the ONNX file stays a single one, well below protobuf's limit of 2 GiB.
MAX_PARAMETERS = 250_000_000


class Violation(NamedTuple):
    """One wrong field: its path below the specification, and what was expected and what was got."""

    field: str
    description: str


def validate(spec: TrainingJobSpec, facts: DatasetFacts | None = None) -> list[Violation]:
    """Returns every violation, in the order of the fields; an empty list means the job can run.

    Paths are relative to the specification (`dataset.line.points`). Defaults are applied first, so
    a specification straight from the wire can be given.

    Args:
        spec: What is checked.
        facts: What is known of the data set; None: what is known before it is read. A table is
            known only then, so a specification can turn out wrong once its files are read.
    """
    spec = with_defaults(spec)
    facts = facts or facts_of(spec.dataset)
    return [
        *_check_texts(spec),
        *_check_data(spec, facts),
        *_check_model(spec, facts),
        *_check_training(spec, facts),
    ]


def _check_texts(spec: TrainingJobSpec) -> Iterator[Violation]:
    length = len(spec.display_name)
    if length > MAX_DISPLAY_NAME_CHARACTERS:
        yield Violation(
            "display_name",
            f"expected at most {MAX_DISPLAY_NAME_CHARACTERS} characters, got {length}",
        )
    publication = spec.publication
    model_is_good = True
    try:
        check_id(publication.model, what="model id")
    except InvalidName as error:
        model_is_good = False
        yield Violation("publication.model", str(error))
    if publication.alias:
        try:
            # An alias has rules of its own; a stand-in keeps the model's fault out of its message.
            ModelAliasName(publication.model if model_is_good else "model", publication.alias)
        except InvalidName as error:
            yield Violation("publication.alias", str(error))
    size_bytes = len(publication.description.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_DESCRIPTION_BYTES:
        yield Violation(
            "publication.description",
            f"expected at most {MAX_DESCRIPTION_BYTES} bytes, got {size_bytes}",
        )


def _check_data(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    match spec.dataset:
        case None:
            yield _nothing_set("dataset", "bundled", "line", "table")
        case BundledDataset(name=name) if name not in BUNDLED_DATASETS:
            known = ", ".join(sorted(BUNDLED_DATASETS))
            yield Violation("dataset.bundled", f"expected one of: {known}; got {_shown(name)}")
        case LineDataset() as line:
            path = "dataset.line"
            yield from _whole(f"{path}.points", line.points, 10, MAX_POINTS)
            for field in ("slope", "intercept", "minimum_x", "maximum_x"):
                yield from _real(f"{path}.{field}", getattr(line, field), "a finite number")
            yield from _real(
                f"{path}.noise_stddev", line.noise_stddev, "a finite number from 0", least=0.0
            )
            if line.minimum_x >= line.maximum_x:
                yield Violation(
                    f"{path}.maximum_x",
                    f"expected a number above minimum_x = {line.minimum_x:g}, "
                    f"got {line.maximum_x:g}",
                )
        case TableDataset() as table:
            yield from _check_table(table)
        case BundledDataset():
            pass
    yield from _check_split(spec, facts)
    steps = len(spec.preprocessing)
    if steps > MAX_PREPROCESSING_STEPS:
        yield Violation(
            "preprocessing", f"expected at most {MAX_PREPROCESSING_STEPS} steps, got {steps}"
        )
    for position, step in enumerate(spec.preprocessing[:MAX_PREPROCESSING_STEPS]):
        if step is None:
            yield _nothing_set(f"preprocessing[{position}]", "standardize", "min_max_scale")


def _check_table(table: TableDataset) -> Iterator[Violation]:
    path = "dataset.table"
    if not 1 <= len(table.paths) <= MAX_PATHS:
        yield Violation(
            f"{path}.paths", f"expected from 1 to {MAX_PATHS} files, got {len(table.paths)}"
        )
    endings = {Path(file).suffix.lower() for file in table.paths}
    if table.paths and (len(endings) > 1 or not endings <= TABLE_ENDINGS):
        known = ", ".join(sorted(TABLE_ENDINGS))
        got = ", ".join(_shown(ending) for ending in sorted(endings))
        yield Violation(
            f"{path}.paths",
            f"expected files of one format, with one of the endings {known}; got {got}",
        )
    for position, file in enumerate(table.paths[:MAX_PATHS]):
        if not file or "\0" in file or ".." in Path(file).parts:
            yield Violation(
                f"{path}.paths[{position}]",
                f"expected a path without `..`, got {_shown(file)}",
            )
    yield from _name(f"{path}.target", table.target)
    if len(table.columns) > MAX_COLUMNS:
        yield Violation(
            f"{path}.columns", f"expected at most {MAX_COLUMNS} columns, got {len(table.columns)}"
        )
        return
    seen = {table.target}
    for position, column in enumerate(table.columns):
        field = f"{path}.columns[{position}]"
        yield from _name(f"{field}.name", column.name)
        if column.name in seen:
            yield Violation(
                f"{field}.name",
                "expected a column that is neither the target nor named twice, got "
                + _shown(column.name),
            )
        seen.add(column.name)
        match column.encoding:
            case NumberEncoding(constant=constant):
                yield from _real(f"{field}.number.constant", constant, "a finite number")
            case CategoryEncoding(max_categories=most):
                yield from _whole(f"{field}.category.max_categories", most, 1, MAX_CATEGORIES)
            case None:
                pass


def _name(field: str, name: str) -> Iterator[Violation]:
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        yield Violation(
            field,
            f"expected a name of 1 to {MAX_NAME_CHARACTERS} printable characters, got "
            + _shown(name),
        )


def _check_split(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    split = spec.split
    fractions = {
        "split.validation_fraction": split.validation_fraction,
        "split.test_fraction": split.test_fraction,
    }
    wrong: list[Violation] = []
    for field, fraction in fractions.items():
        wrong += _real(field, fraction, "a fraction above 0 and below 1", above=0.0, below=1.0)
    yield from wrong
    if not wrong and sum(fractions.values()) >= 1:
        wrong.append(
            Violation(
                "split",
                "expected validation_fraction + test_fraction below 1, so that rows are left for "
                f"training; got {split.validation_fraction:g} + {split.test_fraction:g}",
            )
        )
        yield wrong[-1]
    yield from _whole("split.seed", split.seed, 0)
    if wrong or facts is None or isinstance(spec.dataset, TableDataset):
        return  # how a table is divided is known when it is read
    # Every class must be met in every part, else a metric of the part means nothing.
    least = facts.outputs if facts.task is Task.CLASSIFICATION else 1
    for field, fraction in fractions.items():
        rows = math.floor(facts.rows * fraction)
        if rows < least:
            yield Violation(
                field,
                f"expected a fraction that makes at least {least} of the {facts.rows} rows, "
                f"got {fraction:g}, which makes {rows}",
            )


def _check_model(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    wrong: list[Violation] = []
    match spec.model:
        case None:
            wrong.append(_nothing_set("model", "linear", "mlp", "cnn"))
        case LinearModel():
            pass
        case MlpModel(hidden_units=widths):
            wrong += _widths("model.mlp.hidden_units", widths, "layers", MAX_LAYERS, MAX_UNITS)
        case CnnModel() as cnn:
            wrong += _widths("model.cnn.channels", cnn.channels, "blocks", MAX_BLOCKS, MAX_CHANNELS)
            wrong += _whole("model.cnn.hidden_units", cnn.hidden_units, 1, MAX_UNITS)
            wrong += _real(
                "model.cnn.dropout", cnn.dropout, "a probability in [0, 1)", least=0.0, below=1.0
            )
            if facts is not None:
                wrong += _check_image(cnn, facts)
    yield from wrong
    if facts is not None and not wrong:
        parameters = parameter_count(spec.model, facts)
        if parameters > MAX_PARAMETERS:
            yield Violation(
                "model",
                f"expected at most {MAX_PARAMETERS} weights, so that the ONNX file stays a single "
                f"one; got {parameters}",
            )


def _check_image(cnn: CnnModel, facts: DatasetFacts) -> Iterator[Violation]:
    if len(facts.row_shape) != 2:
        yield Violation(
            "model.cnn",
            f"expected a data set of images, got rows of shape {list(facts.row_shape)}",
        )
        return
    # Each block halves the image, rounding down; a side must not vanish.
    most = int(math.log2(min(facts.row_shape)))
    if MAX_BLOCKS >= len(cnn.channels) > most:
        height, width = facts.row_shape
        yield Violation(
            "model.cnn.channels",
            f"expected at most {most} blocks, because each halves the {height} by {width} image; "
            f"got {len(cnn.channels)}",
        )


def _check_training(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    match spec.loss:
        case None:
            yield _nothing_set("loss", "mse", "cross_entropy")
        case CrossEntropy() if facts and facts.task is Task.REGRESSION:
            yield Violation("loss", "expected mse for a regression data set, got cross_entropy")
        case MeanSquaredError() if facts and facts.task is Task.CLASSIFICATION:
            yield Violation("loss", "expected cross_entropy for a data set of classes, got mse")
        case _:
            pass
    rate = "a step size above 0"
    match spec.optimizer:
        case None:
            yield _nothing_set("optimizer", "gradient_descent", "sgd", "adam")
        case GradientDescent(learning_rate=learning_rate):
            yield from _real(
                "optimizer.gradient_descent.learning_rate", learning_rate, rate, above=0.0
            )
        case Sgd(learning_rate=learning_rate, momentum=momentum):
            yield from _real("optimizer.sgd.learning_rate", learning_rate, rate, above=0.0)
            yield from _real(
                "optimizer.sgd.momentum", momentum, "a fraction in [0, 1)", least=0.0, below=1.0
            )
        case Adam() as adam:
            path = "optimizer.adam"
            yield from _real(f"{path}.learning_rate", adam.learning_rate, rate, above=0.0)
            for field in ("beta1", "beta2"):
                yield from _real(
                    f"{path}.{field}",
                    getattr(adam, field),
                    "a decay above 0 and below 1",
                    above=0.0,
                    below=1.0,
                )
            yield from _real(f"{path}.epsilon", adam.epsilon, "a number above 0", above=0.0)
    yield from _whole("epochs", spec.epochs, 1, MAX_EPOCHS)
    yield from _whole("batch_size", spec.batch_size, 1)
    yield from _whole("seed", spec.seed, 0)
    yield from _whole("log_every_epochs", spec.log_every_epochs, 1)


def _nothing_set(field: str, *choices: str) -> Violation:
    return Violation(field, f"expected one of: {', '.join(choices)}; got none of them")


def _shown(text: str, most: int = 80) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")


def _whole(field: str, value: int, least: int, most: int | None = None) -> Iterator[Violation]:
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        yield Violation(field, f"expected a whole number {bounds}, got {value}")


def _widths(
    field: str, widths: tuple[int, ...], noun: str, most_layers: int, most_units: int
) -> Iterator[Violation]:
    if not 1 <= len(widths) <= most_layers:
        yield Violation(field, f"expected from 1 to {most_layers} {noun}, got {len(widths)}")
        return
    for position, width in enumerate(widths):
        yield from _whole(f"{field}[{position}]", width, 1, most_units)


def _real(
    field: str,
    value: float,
    expected: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Iterator[Violation]:
    # NaN fails every comparison and infinity the finiteness, so neither slips through.
    if not (math.isfinite(value) and value >= least and above < value < below):
        yield Violation(field, f"expected {expected}, got {value:g}")
