"""A data set as the network reads it, and how raw values become that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from torch import nn

from modelrail_trainer.handover.artifact import OutputParity, Signature
from modelrail_trainer.spec import DatasetFacts, Task
from modelrail_trainer.worker.export.reference import ReferenceCase
from modelrail_trainer.worker.part import Part


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """A graph from raw values to answers that passed the gate.

    Attributes:
        signature: Its inputs and outputs.
        parity: The worst difference of each output of numbers.
        cases: Rows that were compared, and what Python makes of them.
    """

    signature: Signature
    parity: tuple[OutputParity, ...]
    cases: tuple[ReferenceCase, ...]


class RawRows(Protocol):
    """Raw values of which the inputs were made, and the same making as a graph."""

    def remarks(self) -> Iterator[str]:
        """Yields what there is to tell of the data, in sentences."""
        ...

    def export(
        self, bare: onnx.ModelProto, signature: Signature, module: nn.Module, path: Path
    ) -> EndToEnd:
        """Writes the graph from raw values to answers, and proves it.

        Args:
            bare: The network alone, as it was exported.
            signature: Of the network alone; if it takes one row at a time, so does the graph.
            module: What was exported, in evaluation mode.
            path: Where the graph is written.

        Raises:
            GateFailed: The graph does not compute what Python computes, or breaks another rule.
        """
        ...


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
        tokens: Size of the vocabulary, padding 0 included, when rows [T] are tokens; 0 when they
            are numbers.
        raw: What a client sends in place of the inputs; None: the inputs themselves.
        scaling: First module of the network, in place of the steps of the specification; None:
            those.
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
    tokens: int = 0
    raw: RawRows | None = None
    scaling: nn.Module | None = None

    def sample(self, rows: int) -> TrainingData:
        """Returns so many rows of each part, of what is measured on at least two.

        They have the least and the greatest target of the part and those between them at even
        distances: what has a value on the whole part has one on its sample.
        """
        measured = max(rows, 2)
        return replace(
            self,
            train=_sample(self.train, rows),
            validation=_sample(self.validation, measured),
            test=_sample(self.test, measured),
        )

    @property
    def facts(self) -> DatasetFacts:
        """What is known of the data now that it is read."""
        return DatasetFacts(
            task=self.task,
            rows=sum(map(len, (self.train, self.validation, self.test))),
            row_shape=self.train.inputs.shape[1:],
            outputs=self.outputs,
            tokens=self.tokens,
        )


def _sample(part: Part, rows: int) -> Part:
    if len(part) <= rows:
        return part
    places = np.linspace(0, len(part) - 1, rows, dtype=np.int64)
    if part.targets[0].size == 1:  # of text there is a target at each place, and none to sort by
        places = np.sort(np.argsort(part.targets, axis=0, kind="stable").reshape(-1)[places])
    return Part(part.inputs[places], part.targets[places])
