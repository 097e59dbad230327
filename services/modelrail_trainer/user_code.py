"""What the code of a job's owner sees: facts that a model is made for, rows of a data set.

A model function is called as `build(facts, **arguments)` and returns a `torch.nn.Module`. It maps
rows [batch, *facts.row_shape], float32 (int64 when they are tokens), to float32 [batch,
facts.outputs]: logits of the classes, or values. What is random in it should come from torch, whose
generator is seeded and kept in checkpoints. Where several processes train it, what it recomputes
(`torch.utils.checkpoint`) it recomputes with `use_reentrant=False`.

A data function is called as `load(**arguments)` and returns a `CustomData`, or a mapping with its
fields.

Neither torch nor gRPC is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = tuple[Array, Array]
"""Inputs and targets, as long as each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model is made for.

    Attributes:
        row_shape: Shape of one row, without the batch axis.
        outputs: Numbers that a row is answered with: one for each class (one alone for the loss
            `bce`), or the values to predict.
        tokens: Size of the vocabulary when rows [length] are tokens, 0 of which is padding; 0 when
            rows are numbers. Tokens come in rows of any length.
        task: What is learned.
    """

    row_shape: tuple[int, ...]
    outputs: int
    tokens: int
    task: Literal["classification", "regression"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomData:
    """A data set.

    Attributes:
        inputs: Numbers, float32 or uint8 [rows, …], or tokens, int64 or uint8 [rows, length].
            Bytes that are no tokens become float32. All finite.
        targets: Class numbers from 0, int64 or uint8 [rows], or values to predict, float32 [rows]
            or [rows, outputs]. All finite.
        validation: Rows that model selection looks at, and the export is compared on; together with
            `test`, or not at all: without them the rows are divided as the specification says.
        test: Rows that are looked at once, in the end.
        labels: Names of the classes, in the order of their numbers; empty for the numbers
            themselves. Where a model is trained, each class has training rows.
        input_name: Name of the exported graph's input.
        meaning: What the numbers of the input mean, for people who send them.
        tokens: Size of the vocabulary, when rows are tokens: they lie in [0, tokens), and 0 is
            padding after a row's last token. 0 when rows are numbers.
    """

    inputs: Array
    targets: Array
    validation: Rows | None = None
    test: Rows | None = None
    labels: Sequence[str] = ()
    input_name: str = "x"
    meaning: str = ""
    tokens: int = 0


def made_progress() -> None:
    """Tells the trainer that a long piece of work goes on; else it counts as hung in the end."""
    from modelrail_trainer.worker.progress import made_progress as tell  # the worker's own half

    tell()
