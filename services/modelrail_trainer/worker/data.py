"""Data sets: where the rows come from, how they are divided, and their digest for the lineage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelrail_trainer.spec import (
    BundledDataset,
    Dataset,
    LineDataset,
    Split,
    Task,
    TrainingJobSpec,
    facts_of,
)
from modelrail_trainer.worker.failure import DataError

Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows and what is to be predicted for them.

    Attributes:
        inputs: Raw features, float32 [rows, *row_shape].
        targets: Class numbers, int64 [rows], or values, float32 [rows, 1].
    """

    inputs: npt.NDArray[np.float32]
    targets: Array

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """A divided data set.

    Attributes:
        name: In a few words, for the lineage.
        sha256: Digest over every row before the division.
        task: What is learned.
        input_name: Name of the graph's input.
        input_meaning: What the input's numbers mean.
        labels: Names of the classes; empty for regression.
        outputs: Number of classes or predicted values.
    """

    name: str
    sha256: str
    task: Task
    input_name: str
    input_meaning: str
    labels: tuple[str, ...]
    outputs: int
    train: Part
    validation: Part
    test: Part


def load(spec: TrainingJobSpec) -> TrainingData:
    """Reads the data set of a specification and divides it.

    Raises:
        DataError: There is no such data set, or its numbers do not fit into float32.
    """
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
        raise DataError("the split leaves no rows for training, validation or test")
    first, second, third = (Part(rows.inputs[part], rows.targets[part]) for part in parts)
    return first, second, third


def _digest(rows: Part) -> str:
    digest = hashlib.sha256()
    for array in (rows.inputs, rows.targets):
        little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{little_endian.dtype.str} {little_endian.shape}\n".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()
