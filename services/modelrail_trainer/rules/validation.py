"""Which specifications are good: every wrong field is found, not only the first.

Neither torch nor protobuf nor gRPC is imported here, because the service, which validates, must
start without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from modelrail.names import InvalidName, ModelAliasName, check_id
from modelrail_trainer.preprocessing import STEPS
from modelrail_trainer.rules.bounds import violations_of_one
from modelrail_trainer.rules.custom import check_custom
from modelrail_trainer.rules.images import check_images
from modelrail_trainer.rules.learning import check_learning
from modelrail_trainer.rules.model import check_model
from modelrail_trainer.rules.split import check_split, meant_fractions
from modelrail_trainer.rules.table import check_paths, check_table
from modelrail_trainer.rules.violation import Violation, nothing_set, real, shown, whole
from modelrail_trainer.spec import (
    BUNDLED_DATASETS,
    BundledDataset,
    CustomDataset,
    DatasetFacts,
    ImageDataset,
    LineDataset,
    LinesDataset,
    RegressionLoss,
    TableDataset,
    Task,
    TrainingJobSpec,
    facts_of,
    with_defaults,
)

MAX_POINTS = 1_000_000
MIN_CONTEXT_LENGTH = 8
MAX_CONTEXT_LENGTH = 4_096
MAX_PREPROCESSING_STEPS = 16
MAX_DISPLAY_NAME_CHARACTERS = 256
MAX_DESCRIPTION_BYTES = 16 * 1024  # the registry's limit for the description of a version


def validate(spec: TrainingJobSpec, facts: DatasetFacts | None = None) -> list[Violation]:
    """Returns every violation, in the order of the fields; an empty list means the job can run.

    Paths are relative to the specification (`dataset.line.points`). Defaults are applied first, so
    a specification straight from the wire can be given.

    Args:
        spec: What is checked.
        facts: What is known of the data set; None: what is known before it is read. Files are
            known only then, so a specification can turn out wrong once they are read.
    """
    spec = with_defaults(spec)
    facts = facts or facts_of(spec.dataset)
    return [
        *_check_texts(spec),
        *_check_data(spec, facts),
        *check_model(spec, facts),
        *check_learning(spec, facts),
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
    if "\0" in publication.description:
        yield Violation("publication.description", "expected text, got a NUL character in it")


def _check_data(  # one branch a kind
    spec: TrainingJobSpec, facts: DatasetFacts | None
) -> Iterator[Violation]:
    match spec.dataset:
        case None:
            yield nothing_set("dataset", "bundled", "line", "table", "images", "lines", "custom")
        case BundledDataset(name=name) if name not in BUNDLED_DATASETS:
            known = ", ".join(sorted(BUNDLED_DATASETS))
            yield Violation("dataset.bundled", f"expected one of: {known}; got {shown(name)}")
        case LineDataset() as line:
            path = "dataset.line"
            yield from whole(f"{path}.points", line.points, 10, MAX_POINTS)
            for field in ("slope", "intercept", "minimum_x", "maximum_x"):
                yield from real(f"{path}.{field}", getattr(line, field), "a finite number")
            yield from real(
                f"{path}.noise_stddev", line.noise_stddev, "a finite number from 0", least=0.0
            )
            if line.minimum_x >= line.maximum_x:
                yield Violation(
                    f"{path}.maximum_x",
                    f"expected a number above minimum_x = {line.minimum_x:g}, "
                    f"got {line.maximum_x:g}",
                )
        case TableDataset() as table:
            yield from check_table(table)
        case LinesDataset() as lines:
            yield from check_paths("dataset.lines.paths", lines.paths)
            yield from whole(
                "dataset.lines.context_length",
                lines.context_length,
                MIN_CONTEXT_LENGTH,
                MAX_CONTEXT_LENGTH,
            )
        case ImageDataset() as images:
            yield from _check_images(spec, images, facts)
        case CustomDataset() as custom:
            yield from check_custom("dataset.custom", custom)
        case BundledDataset():
            pass
    yield from _check_split(spec, facts)
    steps = len(spec.preprocessing)
    if steps > MAX_PREPROCESSING_STEPS:
        yield Violation(
            "preprocessing", f"expected at most {MAX_PREPROCESSING_STEPS} steps, got {steps}"
        )
    for position, step in enumerate(spec.preprocessing[:MAX_PREPROCESSING_STEPS]):
        yield from violations_of_one(f"preprocessing[{position}]", STEPS, step)


def _check_images(
    spec: TrainingJobSpec, images: ImageDataset, facts: DatasetFacts | None
) -> Iterator[Violation]:
    yield from check_images(images)
    if spec.preprocessing:
        yield Violation(
            "preprocessing",
            "expected no steps for images, whose pixels dataset.images.scale scales",
        )
    if isinstance(spec.loss, RegressionLoss) and facts is None:  # with facts, said with the loss
        yield Violation("loss", "expected one of cross_entropy, bce, kl for images")


def _check_split(spec: TrainingJobSpec, facts: DatasetFacts | None) -> Iterator[Violation]:
    wrong = list(check_split(spec.split, spec.dataset))
    yield from wrong
    if (
        wrong
        or facts is None
        or isinstance(spec.dataset, TableDataset | ImageDataset | LinesDataset | CustomDataset)
    ):
        return  # how these are divided is known when they are read
    # Every class must be met in every part, else a metric of the part means nothing.
    least = facts.outputs if facts.task is Task.CLASSIFICATION else 1
    for field, fraction in meant_fractions(spec.split).items():
        rows = math.floor(facts.rows * fraction)
        if rows < least:
            yield Violation(
                field,
                f"expected a fraction that makes at least {least} of the {facts.rows} rows, "
                f"got {fraction:g}, which makes {rows}",
            )
