"""The acceptance gate of the end-to-end graph: it computes what Python computes on raw rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from modelrail_trainer.encodings import Fitted
from modelrail_trainer.encodings.column import Column
from modelrail_trainer.failure import GateFailed
from modelrail_trainer.handover.artifact import OutputParity, Signature
from modelrail_trainer.worker.export import acceptance, parity
from modelrail_trainer.worker.export.graph import LABEL
from modelrail_trainer.worker.export.reference import ReferenceCase
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.table.graph import domains_of


def check_end_to_end(
    path: Path,
    module: nn.Module,
    signature: Signature,
    encodings: Sequence[Fitted],
    rows: Mapping[str, Column],
) -> tuple[tuple[OutputParity, ...], tuple[ReferenceCase, ...]]:
    """Runs the gate.

    Returns the worst difference of each output of numbers, and the rows that were compared with
    what Python makes of them.

    Args:
        path: The graph.
        module: From features to the network's outputs, in evaluation mode.
        signature: What the graph must look like.
        encodings: Of the columns.
        rows: Raw validation rows, by column, each [N]. Rows that are all missing, unknown, zero and
            large are added to them.

    Raises:
        GateFailed: The message names the rule that is broken, expected and got.
    """
    parity.check_file(path, signature, domains=frozenset(domains_of(encodings)))
    edges = {e.name: e.edge_values() for e in encodings}
    most = max(map(len, edges.values()))
    # Of columns with fewer of them they come again.
    rows = {name: np.append(rows[name], np.resize(edges[name], most)) for name in edges}
    features = np.concatenate([e.encode(rows[e.name]) for e in encodings], axis=1)
    expected = acceptance.python_outputs(module, signature, features)
    worst = dict.fromkeys(expected, 0.0)
    for level in parity.LEVELS:
        session = parity.open_session(path, level, threads=torch.get_num_threads())
        count = len(features) if level in parity.FULL_LEVELS else parity.FEW_ROWS
        some = {name: values[:count] for name, values in rows.items()}
        for batch_size in parity.batch_sizes_of(signature):
            got = _run(session, signature, encodings, some, batch_size)
            for name, values in expected.items():
                what = f"output {name!r} of the end-to-end graph at batch size {batch_size}"
                difference = parity.compare(got[name], values[:count], f"{what}, against Python")
                worst[name] = max(worst[name], difference)
            if LABEL in got:
                parity.check_labels(got, signature)
    sent = {encoding.name: encoding.sent(rows[encoding.name]) for encoding in encodings}
    parities = tuple(OutputParity(name, difference) for name, difference in worst.items())
    return parities, (ReferenceCase(sent, expected),)


def _run(
    session: onnxruntime.InferenceSession,
    signature: Signature,
    encodings: Sequence[Fitted],
    rows: Mapping[str, Column],
    batch_size: int,
) -> dict[str, parity.Floats]:
    """Returns the outputs for all rows, asked for in batches of one size, the last one smaller."""
    names = [output.name for output in signature.outputs]
    found: dict[str, list[parity.Floats]] = {name: [] for name in names}
    count = len(next(iter(rows.values())))
    for start in range(0, count, batch_size):
        made_progress()
        feed = {}
        for encoding in encodings:
            feed[encoding.name] = encoding.sent(rows[encoding.name][start : start + batch_size])
        try:
            outputs = session.run(names, feed)
        except Exception as error:  # ONNX Runtime has an own error class for each status
            raise GateFailed(
                f"ONNX Runtime fails on raw rows in batches of {batch_size}: {str(error)[:500]}"
            ) from error
        for name, output in zip(names, outputs, strict=True):
            found[name].append(output)
    return {name: np.concatenate(outputs) for name, outputs in found.items()}
