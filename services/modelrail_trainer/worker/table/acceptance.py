"""The acceptance gate of the end-to-end graph: it computes what Python computes on raw rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from modelrail_trainer.artifact import OutputParity, Signature
from modelrail_trainer.worker import acceptance, parity
from modelrail_trainer.worker.failure import GateFailed
from modelrail_trainer.worker.graph import LABEL
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.reference import ReferenceCase
from modelrail_trainer.worker.table.column import Column
from modelrail_trainer.worker.table.encoding import Fitted, FittedCategory, FittedNumber
from modelrail_trainer.worker.table.graph import domains_of
from modelrail_trainer.worker.table.text import FittedBytes, FittedWords

# Zeros inside and at the end, white space, capitals, combining marks, right to left, emoji.
_HOSTILE_TEXTS = (
    "a\0b\0",
    "\u00a0\t\u2003\r\n",
    "ABC Ä e\u0301",
    "\u0627\u0644 \u202e",
    "\U0001f600!?",
)
_UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER} no text of the training rows"


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
    rows = {e.name: np.concatenate([rows[e.name], _edge_values(e)]) for e in encodings}
    features = np.concatenate([e.encode(rows[e.name]) for e in encodings], axis=1)
    expected = dict(
        zip(
            [output.name for output in signature.outputs if output.name != LABEL],
            acceptance.run_torch(module, features),
            strict=True,
        )
    )
    worst = dict.fromkeys(expected, 0.0)
    for level in parity.FULL_LEVELS:
        session = parity.open_session(path, level, threads=torch.get_num_threads())
        for batch_size in parity.BATCH_SIZES:
            got = _run(session, signature, encodings, rows, batch_size)
            for name, values in expected.items():
                what = f"output {name!r} of the end-to-end graph at batch size {batch_size}"
                difference = parity.compare(got[name], values, f"{what}, against Python")
                worst[name] = max(worst[name], difference)
            if LABEL in got:
                parity.check_labels(got, signature)
    sent = {encoding.name: _sent(encoding, rows[encoding.name]) for encoding in encodings}
    parities = tuple(OutputParity(name, difference) for name, difference in worst.items())
    return parities, (ReferenceCase(sent, expected),)


def _edge_values(encoding: Fitted) -> Column:
    if isinstance(encoding, FittedNumber):
        # Far outside of the training rows, and not so far that differences of 32-bit floats count.
        large = 1e6 if encoding.log else float(encoding.shift) + 100 * float(encoding.width)
        if encoding.is_double:  # 0 is as far away as can be
            shift = float(encoding.shift)
            return np.array([np.nan, shift, shift - 100 * float(encoding.width), large])
        return np.array([np.nan, -1.0, 0.0, large])
    if isinstance(encoding, FittedWords | FittedBytes):
        return np.array(["", *_HOSTILE_TEXTS, "x " * encoding.size, "y" * 1000], object)
    known = encoding.keys if isinstance(encoding, FittedCategory) else ("a\0b",)
    return np.array(["", _UNKNOWN_TEXT, known[0], known[-1]], object)


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
            feed[encoding.name] = _sent(encoding, rows[encoding.name][start : start + batch_size])
        try:
            outputs = session.run(names, feed)
        except Exception as error:  # ONNX Runtime has an own error class for each status
            raise GateFailed(
                f"ONNX Runtime fails on raw rows in batches of {batch_size}: {str(error)[:500]}"
            ) from error
        for name, output in zip(names, outputs, strict=True):
            found[name].append(output)
    return {name: np.concatenate(outputs) for name, outputs in found.items()}


def _sent(encoding: Fitted, values: Column) -> npt.NDArray[Any]:
    """Returns values [B] as a client sends them, [B, 1], or [B, bytes of the longest]."""
    if isinstance(encoding, FittedNumber):
        kind = np.float64 if encoding.is_double else np.float32
        return values.astype(kind).reshape(-1, 1)
    if isinstance(encoding, FittedBytes):
        contents = [text.encode() for text in values]
        longest = max(map(len, contents))
        filled = b"".join(content.ljust(longest, b"\0") for content in contents)
        return np.frombuffer(filled, np.uint8).reshape(len(values), longest)
    return values.reshape(-1, 1)
