"""The acceptance gate: the file must be seen to compute what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from modelrail_trainer.failure import GateFailed
from modelrail_trainer.handover.artifact import LENGTH, ExportCertificate, OutputParity, Signature
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export.graph import LABEL
from modelrail_trainer.worker.export.model_file import opset_of
from modelrail_trainer.worker.export.parity import (
    ABSOLUTE_TOLERANCE,
    FEW_ROWS,
    FULL_LEVELS,
    LEVELS,
    MAX_ROWS,
    RELATIVE_TOLERANCE,
    Floats,
    batch_sizes_of,
    check_causality,
    check_file,
    compare,
    open_session,
    run,
)
from modelrail_trainer.worker.export.reference import ReferenceCase
from modelrail_trainer.worker.learning.evaluate import as_metrics, evaluate
from modelrail_trainer.worker.part import Inputs
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.training_data import TrainingData

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")
# Windows of language, which have an output at each place.
_MAX_WINDOWS = 16

# The other figures follow from the same outputs, but hang on single rows: one row of a rare class,
# or the order of two scores that nearly tie, moves them far.
_COMPARED_FIGURES = {"loss", "accuracy", "mse", "mae"}


def check(
    path: Path,
    module: nn.Module,
    signature: Signature,
    data: TrainingData,
    reference: Mapping[str, Mapping[str, float]],
) -> tuple[ExportCertificate, tuple[Metric, ...], tuple[ReferenceCase, ...]]:
    """Runs the gate.

    Returns the certificate, the figures recomputed with ONNX Runtime, and the rows that were
    compared with what PyTorch makes of them.

    Args:
        path: The exported file.
        module: What was exported, in evaluation mode.
        signature: What the file must look like.
        data: Its validation rows are compared, its validation and test figures recomputed.
        reference: PyTorch's figures for `validation` and `test`.

    Raises:
        GateFailed: The message names the rule that is broken, expected and got.
    """
    model = check_file(path, signature)
    language = data.task is Task.LANGUAGE
    rows = data.validation.inputs[: _MAX_WINDOWS if language else MAX_ROWS]
    compared = np.concatenate([edge_rows(rows), rows])
    batch_sizes = batch_sizes_of(signature)
    cases = []  # rows of each length, and what PyTorch makes of them
    for length in _lengths(signature, rows):
        shorter = np.ascontiguousarray(compared[:, :length])
        outputs = {size: _torch_outputs(module, signature, shorter, size) for size in batch_sizes}
        cases.append((shorter, outputs))
    worst = dict.fromkeys((output.name for output in signature.outputs), 0.0)
    for level in LEVELS:
        session = open_session(path, level, threads=torch.get_num_threads())
        count = len(compared) if level in FULL_LEVELS else FEW_ROWS
        for shorter, expected in cases:
            found = _compare(session, signature, shorter[:count], expected)
            for name, difference in found.items():
                worst[name] = max(worst[name], difference)
        if language:
            check_causality(session, signature, np.ascontiguousarray(rows[:count]))
    certificate = ExportCertificate(
        opset=opset_of(model),
        absolute_tolerance=ABSOLUTE_TOLERANCE,
        relative_tolerance=RELATIVE_TOLERANCE,
        batch_sizes=batch_sizes,
        outputs=tuple(OutputParity(name, difference) for name, difference in worst.items()),
        rows=len(rows),
        tools={name: version(name) for name in _TOOLS},
    )
    name = signature.inputs[0].name
    kept = tuple(ReferenceCase({name: rows}, outputs[batch_sizes[0]]) for rows, outputs in cases)
    return certificate, _recompute(session, signature, data, reference), kept


def edge_rows(rows: Inputs) -> Inputs:
    """Returns two rows beyond what validation has: zeros, and large values, [2, *row_shape].

    Numbers are ten times the largest. Whole numbers are names or pixels, so the largest is as far
    as they go.
    """
    largest = np.abs(rows).max(initial=1)
    factor = 10 if rows.dtype.kind == "f" else 1
    edges: Inputs = np.zeros((2, *rows.shape[1:]), rows.dtype)
    edges[1] = factor * largest
    return edges


def _lengths(signature: Signature, rows: Inputs) -> tuple[int, ...]:
    """Returns the lengths of rows that are tried: several, where a request chooses it."""
    whole = rows.shape[1]
    return (whole, whole // 2 + 1, 1) if LENGTH in signature.inputs[0].shape else (whole,)


def _compare(
    session: onnxruntime.InferenceSession,
    signature: Signature,
    rows: Inputs,
    expected: Mapping[int, Mapping[str, Floats]],
) -> dict[str, float]:
    """Compares PyTorch and ONNX Runtime, and single rows with rows in a batch.

    Args:
        session: The file in ONNX Runtime.
        signature: Its inputs and outputs.
        rows: [N, *row_shape].
        expected: PyTorch's outputs [M, …] by batch size and name, of these rows and maybe more.
    """
    worst: dict[str, float] = {}
    alone: dict[str, Floats] = {}  # outputs of single rows, [N, outputs]
    for batch_size, theirs in expected.items():
        got = _in_batches(partial(run, session, signature), signature, rows, batch_size)
        for name, ours in got.items():
            what = f"output {name!r} at batch size {batch_size}"
            difference = compare(
                ours, theirs[name][: len(rows)], f"{what}, ONNX Runtime against PyTorch"
            )
            worst[name] = max(worst.get(name, 0.0), difference)
            alone.setdefault(name, ours)
            compare(ours, alone[name], f"{what} against the same rows alone")
    return worst


def _torch_outputs(
    module: nn.Module, signature: Signature, rows: Inputs, batch_size: int
) -> dict[str, Floats]:
    return _in_batches(partial(run_torch, module), signature, rows, batch_size)


def _in_batches(
    answer: Callable[[Inputs], list[Floats]], signature: Signature, rows: Inputs, batch_size: int
) -> dict[str, Floats]:
    """Returns each output for all rows, [N, …], asked for in batches of one size."""
    # Rows are taken again from the front until the last batch is full.
    filled = np.resize(rows, (-(-len(rows) // batch_size) * batch_size, *rows.shape[1:]))
    found: dict[str, list[Floats]] = {output.name: [] for output in signature.outputs}
    for start in range(0, len(filled), batch_size):
        made_progress()
        outputs = answer(filled[start : start + batch_size])  # of [batch_size, *row_shape]
        for output, values in zip(signature.outputs, outputs, strict=True):
            found[output.name].append(values)
    return {name: np.concatenate(values)[: len(rows)] for name, values in found.items()}


def _recompute(
    session: onnxruntime.InferenceSession,
    signature: Signature,
    data: TrainingData,
    reference: Mapping[str, Mapping[str, float]],
) -> tuple[Metric, ...]:
    metrics: tuple[Metric, ...] = ()
    for split, part in (("validation", data.validation), ("test", data.test)):
        # The first output is the one that the metrics are made of: logits, or y.
        figures = evaluate(partial(_first_output, session, signature), part, data.task)
        for name in _COMPARED_FIGURES & figures.keys():
            expected, value = reference[split][name], figures[name]
            # Two scores that nearly tie may swap: for a ratio, one row in a hundred may differ.
            allowed = (
                0.01
                if name == "accuracy"
                else ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * abs(expected)
            )
            if not abs(value - expected) <= allowed:
                raise GateFailed(
                    f"{split} {name}: expected {expected:.6g} as with PyTorch, got {value:.6g}"
                )
        metrics += as_metrics(figures, split=split, epoch=0, runtime="onnxruntime")
    return metrics


def _first_output(
    session: onnxruntime.InferenceSession, signature: Signature, rows: Inputs
) -> Floats:
    answer = partial(run, session, signature)
    (fixed, *others) = batch_sizes_of(signature)
    name = signature.outputs[0].name
    return answer(rows)[0] if others else _in_batches(answer, signature, rows, fixed)[name]


def python_outputs(module: nn.Module, signature: Signature, rows: Inputs) -> dict[str, Floats]:
    """Returns what a module says of rows, [N, outputs] by name, as a graph would that it is in.

    Args:
        module: From rows to the outputs of the signature, in its order, the label left out.
        signature: Of the graph; if it takes one row at a time, so does the module.
        rows: [N, *row_shape].
    """
    batches = [rows] if signature.has_batch else [*rows[:, None]]
    answers = zip(*(run_torch(module, batch) for batch in batches), strict=True)
    names = [output.name for output in signature.outputs if output.name != LABEL]
    return dict(zip(names, map(np.concatenate, answers), strict=True))


def run_torch(module: nn.Module, rows: Inputs) -> list[Floats]:
    """Returns the outputs of a module for some rows, each [B, outputs]."""
    with torch.inference_mode():
        outputs = module(torch.from_numpy(rows))
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
