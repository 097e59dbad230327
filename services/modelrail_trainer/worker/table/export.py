"""Exports the network of a table with the encoding of its columns, and proves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from modelrail_trainer.handover.artifact import Signature
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export.model_file import describe
from modelrail_trainer.worker.table.acceptance import check_end_to_end
from modelrail_trainer.worker.table.dataset import Table
from modelrail_trainer.worker.table.graph import end_to_end, end_to_end_signature
from modelrail_trainer.worker.training_data import EndToEnd


@dataclass(frozen=True, slots=True)
class RawTable:
    """The columns of a table, as `RawRows`."""

    table: Table

    def remarks(self) -> Iterator[str]:
        """Yields what became of the columns, and which rows were left out."""
        table = self.table
        if table.tokens:
            yield f"the texts became rows of tokens, of {table.tokens} different ones"
        else:
            features = sum(encoding.size for encoding in table.encodings)
            yield f"{len(table.encodings)} columns became {features} features"
        yield from table.remarks
        for reason, rows in table.unusable.items():
            yield f"{rows} rows were left out: {reason}"
        for column in table.constant_columns:
            yield f"column {column!r} never varies in the training rows and teaches nothing"

    def export(
        self, bare: onnx.ModelProto, signature: Signature, module: nn.Module, path: Path
    ) -> EndToEnd:
        """Writes the graph from raw columns to answers, and runs the gate on it."""
        table = self.table
        whole_signature = end_to_end_signature(signature, table.encodings, table.labels)
        if not signature.has_batch:
            whole_signature = whole_signature.of_one_row()
        whole = end_to_end(bare, table.encodings, whole_signature)
        describe(whole, whole_signature, Task.CLASSIFICATION if table.labels else Task.REGRESSION)
        onnx.save(whole, path)
        parity, cases = check_end_to_end(
            path, module, whole_signature, table.encodings, table.raw_rows
        )
        return EndToEnd(whole_signature, parity, cases)
