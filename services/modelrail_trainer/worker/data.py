"""Data sets: where the rows come from, how they are divided, and their digest for the lineage."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelrail_trainer.failure import DataError
from modelrail_trainer.rules.custom import is_import
from modelrail_trainer.spec import (
    BYTE_VALUES,
    BundledDataset,
    CustomDataset,
    Dataset,
    ImageDataset,
    LineDataset,
    LinesDataset,
    RegressionLoss,
    Split,
    TableDataset,
    Task,
    TrainingJobSpec,
    facts_of,
)
from modelrail_trainer.worker.custom.code import UserCode
from modelrail_trainer.worker.custom.dataset import load_custom
from modelrail_trainer.worker.images.dataset import load_images
from modelrail_trainer.worker.images.export import RawImages
from modelrail_trainer.worker.images.graph import PIXELS
from modelrail_trainer.worker.language.stream import load_stream
from modelrail_trainer.worker.memory import return_freed_memory
from modelrail_trainer.worker.part import Part
from modelrail_trainer.worker.table.dataset import load_table
from modelrail_trainer.worker.table.export import RawTable
from modelrail_trainer.worker.training_data import TrainingData

_FEATURES = "features"
_TOKENS = "tokens"


def load(
    spec: TrainingJobSpec,
    folder: Path | None = None,
    *,
    max_rows: int | None = None,
    code: UserCode | None = None,
) -> TrainingData:
    """Reads the data set of a specification and divides it.

    Args:
        spec: With defaults applied.
        folder: For what is made of files (encoded rows, pixels, or a stream), which is read from
            there while it is used; made anew. Other data sets need none.
        max_rows: Of tables and images only so many rows are used, evenly from all of them, or from
            each part that a column or a file of its own tells; None: all.
        code: Where a custom data set's function is; None: nowhere.

    Raises:
        DataError: There is no such data set, its numbers do not fit into float32, or its files are
            not what the specification expects; or no training row has one of the classes.
        UserCodeError: The function of a custom data set failed, or gave something else than it has
            to.
    """
    if isinstance(spec.dataset, CustomDataset):
        if code is None:
            raise ValueError("a custom data set needs the folders of user code")
        return _load_custom(spec, spec.dataset, code)
    if isinstance(spec.dataset, TableDataset | LinesDataset | ImageDataset):
        if folder is None:
            raise ValueError("what is read from files needs a folder for what is made of them")
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt before this one
        folder.mkdir(mode=0o700)
        match spec.dataset:
            case TableDataset() as table:
                read = _load_table(spec, table, folder, max_rows)
            case LinesDataset() as lines:
                read = _load_lines(spec, lines, folder)
            case ImageDataset() as images:
                read = _load_images(spec, images, folder, max_rows)
        return_freed_memory()
        return read
    rows, name = _read(spec.dataset, spec.seed)
    facts = facts_of(spec.dataset)
    if facts is None or rows.inputs.shape != (facts.rows, *facts.row_shape):
        raise DataError(f"data set {name}: rows are not what the trainer knows of it")
    if not (np.isfinite(rows.inputs).all() and np.isfinite(rows.targets).all()):
        raise DataError(f"data set {name}: expected numbers that fit into 32-bit floats")
    classification = facts.task is Task.CLASSIFICATION
    train, validation, test = _divide(rows, spec.split, stratify=classification)
    return TrainingData(
        name=name,
        sha256=_digest(rows),
        task=facts.task,
        input_name="image" if len(facts.row_shape) == 2 else "x",
        input_meaning="pixel intensity" if len(facts.row_shape) == 2 else "place on the line",
        labels=tuple(str(label) for label in range(facts.outputs)) if classification else (),
        outputs=facts.outputs,
        train=train,
        validation=validation,
        test=test,
    )


def _load_table(
    spec: TrainingJobSpec, dataset: TableDataset, folder: Path, max_rows: int | None
) -> TrainingData:
    # Whether the target is a class or a number is what the loss says it is.
    task = Task.REGRESSION if isinstance(spec.loss, RegressionLoss) else Task.CLASSIFICATION
    table = load_table(dataset, spec.split, task, folder, max_rows=max_rows)
    train, validation, test = table.parts
    return TrainingData(
        name=f"table of {_files(spec, dataset)}, target {dataset.target}",
        sha256=table.sha256,
        task=task,
        input_name=_TOKENS if table.tokens else _FEATURES,
        input_meaning="tokens, 0 after the last" if table.tokens else "encoded columns",
        labels=table.labels,
        outputs=len(table.labels) or 1,
        train=train,
        validation=validation,
        test=test,
        tokens=table.tokens,
        raw=RawTable(table),
    )


def _files(spec: TrainingJobSpec, dataset: TableDataset | LinesDataset) -> str:
    """Returns how many files the rows come from: `1 file`, `2 files`."""
    count = len(dataset.paths) + len(spec.split.own_paths)
    return f"{count} file{'' if count == 1 else 's'}"


def _load_lines(spec: TrainingJobSpec, dataset: LinesDataset, folder: Path) -> TrainingData:
    stream = load_stream(dataset, spec.split, folder)
    train, validation, test = stream.parts
    return TrainingData(
        name=f"{stream.size_bytes} bytes of text in {_files(spec, dataset)}",
        sha256=stream.sha256,
        task=Task.LANGUAGE,
        input_name="bytes",
        input_meaning="text in UTF-8",
        labels=(),
        outputs=BYTE_VALUES,
        train=train,
        validation=validation,
        test=test,
        tokens=BYTE_VALUES,
    )


def _load_images(
    spec: TrainingJobSpec, dataset: ImageDataset, folder: Path, max_rows: int | None
) -> TrainingData:
    images = load_images(dataset, spec.split, folder, max_rows=max_rows)
    train, validation, test = images.parts
    return TrainingData(
        name=f"{images.color} images of {images.height} by {images.width} pixels in "
        f"{len(images.labels)} classes",
        sha256=images.sha256,
        task=Task.CLASSIFICATION,
        input_name=PIXELS,
        input_meaning="pixels, channel by channel",
        labels=images.labels,
        outputs=len(images.labels),
        train=train,
        validation=validation,
        test=test,
        raw=RawImages(images),
        scaling=images.scaling,
    )


def _load_custom(spec: TrainingJobSpec, dataset: CustomDataset, code: UserCode) -> TrainingData:
    rows = load_custom(code, dataset, seed=spec.seed)
    if len(rows.parts) == 1:
        stratify = rows.task is Task.CLASSIFICATION
        train, validation, test = _divide(rows.parts[0], spec.split, stratify=stratify)
    else:
        train, validation, test = rows.parts
    # An import has learned its classes elsewhere.
    if rows.task is Task.CLASSIFICATION and not is_import(spec):
        _check_classes(rows.labels, train, validation, test)
    return TrainingData(
        name=f"custom data set {dataset.entry_point}",
        sha256=_digest(*rows.parts),
        task=rows.task,
        input_name=rows.input_name,
        input_meaning=rows.meaning,
        labels=rows.labels,
        outputs=rows.outputs,
        train=train,
        validation=validation,
        test=test,
        tokens=rows.tokens,
    )


def _read(dataset: Dataset, seed: int) -> tuple[Part, str]:
    match dataset:
        case BundledDataset(name="digits"):
            from sklearn.datasets import load_digits  # takes more than a second to import

            # 1,797 handwritten digits, 8 by 8 pixels of intensity 0 to 16 (UCI, 1998).
            digits = load_digits()
            return Part(digits.images.astype(np.float32), digits.target.astype(np.int64)), "digits"
        case LineDataset() as line:
            x = np.linspace(line.minimum_x, line.maximum_x, line.points).reshape(-1, 1)  # [N, 1]
            noise = np.random.default_rng(seed).normal(0.0, line.noise_stddev, x.shape)  # [N, 1]
            with np.errstate(over="ignore", invalid="ignore"):  # refused by the caller
                y = line.slope * x + line.intercept + noise  # [N, 1]
                part = Part(x.astype(np.float32), y.astype(np.float32))
            return part, f"line y = {line.slope:g}x + {line.intercept:g}, {line.points} points"
        case _:
            raise DataError(f"there is no data set {dataset!r}")


def _divide(rows: Part, split: Split, *, stratify: bool) -> tuple[Part, Part, Part]:
    """Divides rows at random; stratified, each class gives its fraction to each part."""
    generator = np.random.default_rng(split.seed)
    groups = (
        [np.flatnonzero(rows.targets == label) for label in np.unique(rows.targets)]
        if stratify
        else [np.arange(len(rows))]
    )
    train, validation, test = [], [], []
    for group in groups:
        order = generator.permutation(group)
        tests = max(1, round(len(order) * split.test_fraction))
        validations = max(1, round(len(order) * split.validation_fraction))
        test.append(order[:tests])
        validation.append(order[tests : tests + validations])
        train.append(order[tests + validations :])
    parts = [np.sort(np.concatenate(part)) for part in (train, validation, test)]
    if not all(len(part) for part in parts):
        raise DataError(
            "the split leaves no rows for training, validation or test; give more rows, or change "
            "the fractions of split"
        )
    first, second, third = (Part(rows.inputs[part], rows.targets[part]) for part in parts)
    return first, second, third


def _check_classes(labels: Sequence[str], *parts: Part) -> None:
    """Refuses classes that nothing would be learned of; the first part is for training."""
    rows = np.stack([np.bincount(part.targets, minlength=len(labels)) for part in parts])
    for label, learned, elsewhere in zip(labels, rows[0], rows[1:].sum(axis=0), strict=True):
        if not learned:
            why = "there is no row of it"
            if elsewhere:
                why = f"validation and test have all {elsewhere} of it"
            raise DataError(
                f"class {label!r}: expected at least 1 training row, got none: {why}; give more "
                "rows of it, or leave the class out"
            )


def _digest(*parts: Part) -> str:
    digest = hashlib.sha256()
    for array in (array for rows in parts for array in (rows.inputs, rows.targets)):
        little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{little_endian.dtype.str} {little_endian.shape}\n".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()
