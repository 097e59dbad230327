"""What is known about a data set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """What a model answers: one of a set of classes, numbers, or the next byte at each place."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    LANGUAGE = "language"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What is known about a data set before it is read.

    Attributes:
        task: What is learned from it.
        rows: Number of rows; 0 when just reading tells it.
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
