"""The acceptance gate: the file must be seen to compute what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

from modelrail_trainer.artifact import LENGTH, ExportCertificate, OutputParity, Signature
from modelrail_trainer.journal import Metric
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export import leaks, opset_of
from modelrail_trainer.worker.failure import GateFailed
from modelrail_trainer.worker.learning.evaluate import as_metrics, evaluate
from modelrail_trainer.worker.part import Inputs
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.training_data import TrainingData

BATCH_SIZES = (1, 2, 7)
ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3
LEVELS = (
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
)
# What the file says, and what is served. The levels between see few rows: their fusions are among
# those of the last.
_FULL_LEVELS = (LEVELS[0], LEVELS[-1])
_FEW_ROWS = 16
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")
# Beyond this many rows the comparison of single rows would take longer than it teaches.
_MAX_ROWS = 256
# Windows of language, which have an output at each place.
_MAX_WINDOWS = 16

# The other figures follow from the same outputs, but hang on single rows: one row of a rare class,
# or the order of two scores that nearly tie, moves them far.
_COMPARED_FIGURES = {"loss", "accuracy", "mse", "mae"}

Floats = npt.NDArray[np.float32]


def check(
    path: Path,
    module: nn.Module,
    signature: Signature,
    data: TrainingData,
    reference: Mapping[str, Mapping[str, float]],
) -> tuple[ExportCertificate, tuple[Metric, ...]]:
    """Runs the gate and returns the certificate and the figures recomputed with ONNX Runtime.

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
    rows = data.validation.inputs[: _MAX_WINDOWS if language else _MAX_ROWS]
    compared = np.concatenate([edge_rows(rows), rows])
    batch_sizes = batch_sizes_of(signature)
    cases = []  # rows of each length, and what PyTorch makes of them
    for length in _lengths(signature, rows):
        shorter = np.ascontiguousarray(compared[:, :length])
        outputs = {size: _torch_outputs(module, signature, shorter, size) for size in batch_sizes}
        cases.append((shorter, outputs))
    worst = dict.fromkeys((output.name for output in signature.outputs), 0.0)
    for level in LEVELS:
        session = open_session(path, level)
        count = len(compared) if level in _FULL_LEVELS else _FEW_ROWS
        for shorter, expected in cases:
            found = _compare(session, signature, shorter[:count], expected)
            for name, difference in found.items():
                worst[name] = max(worst[name], difference)
        if language:
            _check_causality(session, signature, np.ascontiguousarray(rows[:count]))
    certificate = ExportCertificate(
        opset=opset_of(model),
        absolute_tolerance=ABSOLUTE_TOLERANCE,
        relative_tolerance=RELATIVE_TOLERANCE,
        batch_sizes=batch_sizes,
        outputs=tuple(OutputParity(name, difference) for name, difference in worst.items()),
        rows=len(rows),
        tools={name: version(name) for name in _TOOLS},
    )
    return certificate, _recompute(session, signature, data, reference)


def batch_sizes_of(signature: Signature) -> tuple[int, ...]:
    """Returns the sizes that are compared: some, or the one that the graph is fixed to."""
    first = signature.inputs[0].shape[0]
    return (first,) if isinstance(first, int) else BATCH_SIZES


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


def check_file(
    path: Path, signature: Signature, *, domains: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Checks the file without running it, and returns it.

    Args:
        path: The file.
        signature: What it must look like.
        domains: Of the operators that it may use beside the default ones.

    Raises:
        GateFailed: It is no valid ONNX, uses foreign operators, tells of its source, or has another
        signature.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # onnx raises its own errors, protobuf's and plain ones
        raise GateFailed(f"the file is no valid ONNX: {str(error)[:500]}") from error
    used = {entry.domain for entry in model.opset_import} | {
        node.domain for node in model.graph.node
    }
    allowed = domains | {"", "ai.onnx"}
    if foreign := sorted(used - allowed):
        raise GateFailed(f"expected operators of {sorted(allowed)} only, got {foreign}")
    if told := leaks(model):
        raise GateFailed(f"the file tells of its source: {told[0]}")
    for kind, tensors, expected in (
        ("inputs", model.graph.input, signature.inputs),
        ("outputs", model.graph.output, signature.outputs),
    ):
        got = [_describe(tensor) for tensor in tensors]
        wanted = [(spec.name, spec.datatype, spec.shape) for spec in expected]
        if got != wanted:
            raise GateFailed(f"{kind}: expected {wanted}, got {got}")
    return model


def open_session(
    path: Path, level: onnxruntime.GraphOptimizationLevel
) -> onnxruntime.InferenceSession:
    """Loads the file into ONNX Runtime on the CPU.

    Raises:
        GateFailed: ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait in a loop take the processor from the rest of the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime has an own error class for each status
        raise GateFailed(f"ONNX Runtime cannot load the file: {str(error)[:500]}") from error


def _check_causality(
    session: onnxruntime.InferenceSession, signature: Signature, rows: Inputs
) -> None:
    """Refuses a graph in which what comes later changes what was said before."""
    (whole,) = _run(session, signature, rows)  # [N, T, outputs]
    length = rows.shape[1]
    for place in sorted({1, length // 2, length - 1}):
        others = rows.copy()
        others[:, place:] = 255 - others[:, place:]  # no byte stays as it was
        (changed,) = _run(session, signature, others)
        what = f"output 'logits' before place {place}, with other bytes from there on"
        compare(changed[:, :place], whole[:, :place], what)


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
        got = _in_batches(partial(_run, session, signature), signature, rows, batch_size)
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
    run: Callable[[Inputs], list[Floats]], signature: Signature, rows: Inputs, batch_size: int
) -> dict[str, Floats]:
    """Returns each output for all rows, [N, …], asked for in batches of one size."""
    # Rows are taken again from the front until the last batch is full.
    filled = np.resize(rows, (-(-len(rows) // batch_size) * batch_size, *rows.shape[1:]))
    found: dict[str, list[Floats]] = {output.name: [] for output in signature.outputs}
    for start in range(0, len(filled), batch_size):
        made_progress()
        outputs = run(filled[start : start + batch_size])  # of [batch_size, *row_shape]
        for output, values in zip(signature.outputs, outputs, strict=True):
            found[output.name].append(values)
    return {name: np.concatenate(values)[: len(rows)] for name, values in found.items()}


def compare(got: Floats, expected: Floats, what: str) -> float:
    """Returns the largest absolute difference.

    Raises:
        GateFailed: Shapes or NaN masks differ, or |Δ| > 1e-4 + 1e-3 · |expected| somewhere.
    """
    if got.shape != expected.shape:
        raise GateFailed(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}")
    if not np.array_equal(np.isnan(got), np.isnan(expected)):
        raise GateFailed(f"{what}: NaN in different places")
    # Equal infinities have no difference, though ∞ - ∞ has no value.
    with np.errstate(invalid="ignore"):
        difference = np.where(got == expected, 0.0, np.abs(got - expected))
    difference = np.where(np.isnan(expected), 0.0, difference)
    allowed = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(np.nan_to_num(expected))
    if (difference > allowed).any():
        place = np.unravel_index(np.argmax(difference - allowed), difference.shape)
        raise GateFailed(
            f"{what}: expected {expected[place]:.6g} within {allowed[place]:.2g} "
            f"at {[int(index) for index in place]}, got {got[place]:.6g}"
        )
    return float(difference.max(initial=0.0))


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
    run = partial(_run, session, signature)
    (fixed, *others) = batch_sizes_of(signature)
    name = signature.outputs[0].name
    return run(rows)[0] if others else _in_batches(run, signature, rows, fixed)[name]


def _run(session: onnxruntime.InferenceSession, signature: Signature, rows: Inputs) -> list[Floats]:
    names = [output.name for output in signature.outputs]
    try:
        outputs: list[Floats] = session.run(names, {signature.inputs[0].name: rows})
    except Exception as error:  # ONNX Runtime has an own error class for each status
        raise GateFailed(f"ONNX Runtime fails on {len(rows)} rows: {str(error)[:500]}") from error
    return outputs


def run_torch(module: nn.Module, rows: Inputs) -> list[Floats]:
    """Returns the outputs of a module for some rows, each [B, outputs]."""
    with torch.inference_mode():
        outputs = module(torch.from_numpy(rows))
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _describe(tensor: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    kind = tensor.type.tensor_type
    datatype = onnx.TensorProto.DataType.Name(kind.elem_type)
    datatype = {"DOUBLE": "FP64", "FLOAT": "FP32", "STRING": "BYTES"}.get(datatype, datatype)
    return (
        tensor.name,
        datatype,
        tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim),
    )
