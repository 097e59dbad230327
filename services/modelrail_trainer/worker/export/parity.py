"""Rules for an exported file, and the comparing of what ONNX Runtime makes of it. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from modelrail_trainer.failure import GateFailed
from modelrail_trainer.handover.artifact import Signature
from modelrail_trainer.worker.export.graph import LABEL
from modelrail_trainer.worker.export.model_file import external_tensors, leaks
from modelrail_trainer.worker.part import Inputs

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
FULL_LEVELS = (LEVELS[0], LEVELS[-1])
FEW_ROWS = 16
# Beyond this many rows the comparison of single rows would take longer than it teaches.
MAX_ROWS = 256

Floats = npt.NDArray[np.float32]


def batch_sizes_of(signature: Signature) -> tuple[int, ...]:
    """Returns the sizes that are compared."""
    return BATCH_SIZES if signature.has_batch else (1,)


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
    return check_content(path.read_bytes(), signature, domains=domains)


def check_content(
    content: bytes, signature: Signature, *, domains: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Checks the bytes of a file; see `check_file`."""
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own errors, and plain ones
        raise GateFailed(f"the file is no valid ONNX: {str(error)[:500]}") from error
    if outside := external_tensors(model):
        raise GateFailed(f"expected all weights in the file, got {outside[0]!r} in another")
    try:
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
    model: Path | bytes, level: onnxruntime.GraphOptimizationLevel, *, threads: int
) -> onnxruntime.InferenceSession:
    """Loads a file, or the bytes of one, into ONNX Runtime on the CPU.

    Args:
        model: The file, or its bytes.
        level: How far the graph is optimised.
        threads: That it may use.

    Raises:
        GateFailed: ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    # Threads that wait in a loop take the processor from the rest of the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            model, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime has an own error class for each status
        raise GateFailed(f"ONNX Runtime cannot load the file: {str(error)[:500]}") from error


def check_causality(
    session: onnxruntime.InferenceSession, signature: Signature, rows: Inputs
) -> None:
    """Refuses a graph in which what comes later changes what was said before.

    Args:
        session: The graph.
        signature: Its one input, and its one output, which answers at each place.
        rows: Bytes, [N, T].

    Raises:
        GateFailed: It is one.
    """

    def answers(rows: Inputs) -> Floats:
        batches = [rows] if signature.has_batch else [*rows[:, None]]
        return np.concatenate([run(session, signature, batch)[0] for batch in batches])

    whole = answers(rows)  # [N, T, outputs]
    length = rows.shape[1]
    for place in sorted({1, length // 2, length - 1}):
        others = rows.copy()
        others[:, place:] = 255 - others[:, place:]  # no byte stays as it was
        changed = answers(others)
        what = f"output 'logits' before place {place}, with other bytes from there on"
        compare(changed[:, :place], whole[:, :place], what)


def compare(got: Floats, expected: Floats, what: str, *, room: float = 1.0) -> float:
    """Returns the largest absolute difference.

    Args:
        got: [N, …].
        expected: Likewise.
        what: Is compared, for the message.
        room: By what the tolerance is multiplied.

    Raises:
        GateFailed: Shapes or NaN masks differ, or |Δ| > room · (1e-4 + 1e-3 · |expected|)
            somewhere.
    """
    if got.shape != expected.shape:
        raise GateFailed(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}")
    if not np.array_equal(np.isnan(got), np.isnan(expected)):
        raise GateFailed(f"{what}: NaN in different places")
    # Equal infinities have no difference, though ∞ - ∞ has no value.
    with np.errstate(invalid="ignore"):
        difference = np.where(got == expected, 0.0, np.abs(got - expected))
    difference = np.where(np.isnan(expected), 0.0, difference)
    allowed = room * (ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(np.nan_to_num(expected)))
    if (difference > allowed).any():
        place = np.unravel_index(np.argmax(difference - allowed), difference.shape)
        raise GateFailed(
            f"{what}: expected {expected[place]:.6g} within {allowed[place]:.2g} "
            f"at {[int(index) for index in place]}, got {got[place]:.6g}"
        )
    return float(difference.max(initial=0.0))


def check_labels(got: Mapping[str, npt.NDArray[Any]], signature: Signature) -> None:
    """Refuses labels [N, 1] that are not those of the highest of their logits [N, classes].

    Raises:
        GateFailed: One is another.
    """
    scored = [output.labels for output in signature.outputs if output.name == "logits"]
    if len(scored) != 1 or len(scored[0]) != got["logits"].shape[-1]:
        raise GateFailed("output 'label': expected a label for each place of output 'logits'")
    expected = np.array(scored[0], object)[got["logits"].argmax(axis=1)].reshape(-1, 1)
    if got[LABEL].shape != expected.shape or (got[LABEL] != expected).any():
        raise GateFailed("output 'label': expected the class of the highest logit, got another")


def run(session: onnxruntime.InferenceSession, signature: Signature, rows: Inputs) -> list[Floats]:
    """Returns the outputs of a graph with one input for some rows, each [B, outputs].

    Raises:
        GateFailed: ONNX Runtime fails on them.
    """
    names = [output.name for output in signature.outputs]
    try:
        outputs: list[Floats] = session.run(names, {signature.inputs[0].name: rows})
    except Exception as error:  # ONNX Runtime has an own error class for each status
        raise GateFailed(f"ONNX Runtime fails on {len(rows)} rows: {str(error)[:500]}") from error
    return outputs


def _describe(tensor: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    kind = tensor.type.tensor_type
    datatype = onnx.TensorProto.DataType.Name(kind.elem_type)
    datatype = {"DOUBLE": "FP64", "FLOAT": "FP32", "STRING": "BYTES"}.get(datatype, datatype)
    return (
        tensor.name,
        datatype,
        tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim),
    )
