"""Exports the network of a table with the encoding of its columns, and proves it."""

from __future__ import annotations

from pathlib import Path

import onnx
from torch import nn

from modelrail_trainer.artifact import OutputParity, Signature
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export import describe
from modelrail_trainer.worker.table.acceptance import check_end_to_end
from modelrail_trainer.worker.table.dataset import Table
from modelrail_trainer.worker.table.graph import end_to_end, end_to_end_signature


def export_end_to_end(
    bare: onnx.ModelProto, signature: Signature, module: nn.Module, table: Table, path: Path
) -> tuple[Signature, tuple[OutputParity, ...]]:
    """Writes the end-to-end graph and runs the gate on it.

    Args:
        bare: The network alone, as it was exported.
        signature: Of the network alone.
        module: What was exported, in evaluation mode.
        table: The columns.
        path: Where the graph is written.

    Returns:
        The signature of the graph, and the worst difference of each output of numbers.

    Raises:
        GateFailed: The graph does not compute what Python computes, or breaks another rule.
    """
    whole_signature = end_to_end_signature(signature, table.encodings, table.labels)
    whole = end_to_end(bare, table.encodings, whole_signature)
    describe(whole, whole_signature, Task.CLASSIFICATION if table.labels else Task.REGRESSION)
    onnx.save(whole, path)
    parity = check_end_to_end(path, module, whole_signature, table.encodings, table.raw_rows)
    return whole_signature, parity
