"""A second look at the files of a finished job, without torch, its data or its code.

The process that trained has proven its files itself, and where it called code of the job's owner,
that code could have written anything. So another process checks what can be seen from outside:
the files are those of the result, they break no rule of the gate, ONNX Runtime makes of the
reference rows what the reference says, and the certificate claims no less than that.

What it cannot see is whether the reference is what PyTorch computed, and whether the figures of the
result are true: both are the word of the first process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from modelrail_trainer.encodings.encoding import ML_DOMAIN, ORT_DOMAIN
from modelrail_trainer.failure import GateFailed
from modelrail_trainer.handover.artifact import (
    BARE_NAME,
    BATCH,
    LENGTH,
    MODEL_NAME,
    ONNX_MEDIA_TYPE,
    ExportCertificate,
    OutputParity,
    ResultFile,
    Signature,
    TensorSpec,
    TrainingResult,
)
from modelrail_trainer.handover.verdict import SeenFile, Verdict
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export.graph import LABEL
from modelrail_trainer.worker.export.model_file import (
    TASK_PROPERTY,
    opset_of,
    properties_of,
)
from modelrail_trainer.worker.export.parity import (
    ABSOLUTE_TOLERANCE,
    FEW_ROWS,
    FULL_LEVELS,
    LEVELS,
    MAX_ROWS,
    RELATIVE_TOLERANCE,
    batch_sizes_of,
    check_causality,
    check_content,
    check_labels,
    compare,
    open_session,
)
from modelrail_trainer.worker.export.reference import (
    Reference,
    ReferenceCase,
    Values,
    load_reference,
)
from modelrail_trainer.worker.progress import made_progress

# Another number of threads adds up in another order. What only just passed the gate must not fail
# here of that.
_SLACK = 0.01
# The gate adds so many to the rows of the data, and the certificate does not count them.
_EDGE_ROWS = 2


def look_again(result: TrainingResult, directory: Path) -> Verdict:
    """Checks the files of a result.

    Args:
        result: What the job claims.
        directory: Where the files and the reference are.

    Raises:
        GateFailed: Something is not as claimed; the message says what, expected and got.
    """
    signatures = _signatures(result)
    reference = load_reference(directory)
    _expect(
        "graphs of the reference", sorted(reference), sorted(file.path for file in result.files)
    )
    worst: dict[str, float] = {}
    for file, signature in zip(result.files, signatures, strict=True):
        # The network stands alone, or behind a preparation that the file before it has.
        is_network = signature is signatures[-1]
        cases = reference[file.path]
        try:
            content = _content(file, directory)
            model = _check_graph(content, signature, cases, is_network=is_network)
            found = _differences(content, signature, cases, is_network=is_network)
        except GateFailed as failed:
            raise GateFailed(f"{file.path}: {failed}") from failed
        for name, difference in found.items():
            worst[name] = max(worst.get(name, 0.0), difference)
    _check_certificate(result.certificate, signatures[-1], model, cases)
    _check_claimed_differences(result.certificate, worst, reference)
    return Verdict(
        files=tuple(SeenFile(file.path, file.sha256) for file in result.files),
        outputs=tuple(OutputParity(name, difference) for name, difference in worst.items()),
        rows=sum(len(case) for cases in reference.values() for case in cases),
    )


def _signatures(result: TrainingResult) -> tuple[Signature, ...]:
    """Returns the signature of each file; a job hands over no others."""
    signatures = (result.signature, *([result.bare_signature] if result.bare_signature else []))
    names = (MODEL_NAME, BARE_NAME)[: len(signatures)]
    _expect(
        "files of the result",
        [(file.path, file.media_type) for file in result.files],
        [(name, ONNX_MEDIA_TYPE) for name in names],
    )
    for name, signature in zip(names, signatures, strict=True):
        if not (signature.inputs and signature.outputs):
            raise GateFailed(f"{name}: expected inputs and outputs, got a signature without")
    return signatures


def _content(file: ResultFile, directory: Path) -> bytes:
    """Returns the bytes of a file, which from here on cannot change any more."""
    content = (directory / file.path).read_bytes()
    _expect("sha256", hashlib.sha256(content).hexdigest(), file.sha256)
    return content


def _check_graph(
    content: bytes,
    signature: Signature,
    cases: Sequence[ReferenceCase],
    *,
    is_network: bool,
) -> onnx.ModelProto:
    """Checks what can be told of a file without running it."""
    # What stands in front of a network may need them.
    domains = frozenset() if is_network else frozenset({ML_DOMAIN, ORT_DOMAIN})
    model = check_content(content, signature, domains=domains)
    batches = {tensor.shape[:1] for tensor in (*signature.inputs, *signature.outputs)}
    if batches not in ({(BATCH,)}, {(1,)}):
        got = sorted(str(list(batch)) for batch in batches)
        raise GateFailed(
            f"expected {BATCH!r} or 1 as the first axis of all inputs and outputs, got {got}"
        )
    properties = [(entry.key, entry.value) for entry in model.metadata_props]
    task = dict(properties).get(TASK_PROPERTY, "")
    if task not in {task.value for task in Task}:
        raise GateFailed(f"expected metadata that tells the task, got {task[:80]!r}")
    # Whatever else it said there would be read by everybody who loads it.
    wanted = [*properties_of(model, signature, Task(task)).items()]
    if sorted(properties) != sorted(wanted):
        strange = sorted(key[:80] for key, _ in set(properties) ^ set(wanted))
        raise GateFailed(f"expected the metadata of its signature, and got others in {strange}")
    for case in cases:
        _expect("inputs of the reference", sorted(case.inputs), _names(signature.inputs))
        _expect("outputs of the reference", sorted(case.outputs), _names(_numbers(signature)))
    return model


def _differences(
    content: bytes,
    signature: Signature,
    cases: Sequence[ReferenceCase],
    *,
    is_network: bool,
) -> dict[str, float]:
    """Runs the graph as the gate did, and returns the worst difference of each output."""
    worst = dict.fromkeys(_names(_numbers(signature)), 0.0)
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # 0: as many as there are cores
    for level in LEVELS if is_network else FULL_LEVELS:
        session = open_session(content, level, threads=threads)
        if LENGTH in signature.outputs[0].shape:  # what answers at each place is a language model
            longest = max((case.inputs[signature.inputs[0].name] for case in cases), key=_length)
            check_causality(session, signature, longest[:FEW_ROWS])
        for case in cases:
            rows = case if level in FULL_LEVELS else case.head(FEW_ROWS)
            for batch_size in batch_sizes_of(signature):
                got = _run(session, signature, rows, batch_size)
                for name, expected in rows.outputs.items():
                    what = f"output {name!r} at batch size {batch_size}, against the reference"
                    difference = compare(got[name], expected, what, room=1 + _SLACK)
                    worst[name] = max(worst[name], difference)
                if LABEL in got:
                    check_labels(got, signature)
    return worst


def _length(rows: Values) -> int:
    """Returns how long rows [N, T] are."""
    return int(rows.shape[1])


def _run(
    session: onnxruntime.InferenceSession,
    signature: Signature,
    case: ReferenceCase,
    batch_size: int,
) -> dict[str, Values]:
    """Returns each output for all rows, [N, …], asked for in batches of one size."""
    names = [output.name for output in signature.outputs]
    # Rows are taken again from the front until the last batch is full.
    places = np.resize(np.arange(len(case)), -(-len(case) // batch_size) * batch_size)
    found: dict[str, list[Values]] = {name: [] for name in names}
    for chosen in places.reshape(-1, batch_size):
        made_progress()
        feed = {name: values[chosen] for name, values in case.inputs.items()}
        try:
            outputs = session.run(names, feed)
        except Exception as error:  # ONNX Runtime has an own error class for each status
            raise GateFailed(
                f"ONNX Runtime fails on reference rows in batches of {batch_size}: "
                f"{str(error)[:500]}"
            ) from error
        for name, values in zip(names, outputs, strict=True):
            found[name].append(values)
    return {name: np.concatenate(values)[: len(case)] for name, values in found.items()}


def _check_certificate(
    certificate: ExportCertificate,
    network: Signature,
    model: onnx.ModelProto,
    cases: Sequence[ReferenceCase],
) -> None:
    """Compares what the certificate claims with the rules and with the network's file."""
    claimed = "of the certificate"
    _expect(f"opset {claimed}", certificate.opset, opset_of(model))
    _expect(
        f"tolerances {claimed}",
        (certificate.absolute_tolerance, certificate.relative_tolerance),
        (ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE),
    )
    _expect(f"batch sizes {claimed}", certificate.batch_sizes, batch_sizes_of(network))
    _expect(
        f"outputs {claimed}",
        sorted(output.name for output in certificate.outputs),
        _names(network.outputs),
    )
    # Of rows that take much room the reference has only the first.
    least = max(1, max(map(len, cases)) - _EDGE_ROWS)
    if not least <= certificate.rows <= MAX_ROWS:
        raise GateFailed(
            f"rows {claimed}: expected from {least} to {MAX_ROWS}, got {certificate.rows}"
        )


def _check_claimed_differences(
    certificate: ExportCertificate, worst: Mapping[str, float], reference: Reference
) -> None:
    outputs = [case.outputs for cases in reference.values() for case in cases]
    for claim in certificate.outputs:
        values = [of_case[claim.name] for of_case in outputs]
        largest = max(float(np.abs(np.nan_to_num(v)).max(initial=0.0)) for v in values)
        noise = _SLACK * (ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * largest)
        if not worst[claim.name] <= claim.max_absolute_difference + noise:
            raise GateFailed(
                f"the certificate says that output {claim.name!r} differs by "
                f"{claim.max_absolute_difference:.2g} at most, got {worst[claim.name]:.2g}"
            )


def _numbers(signature: Signature) -> list[TensorSpec]:
    return [output for output in signature.outputs if output.name != LABEL]


def _names(tensors: Iterable[TensorSpec]) -> list[str]:
    return sorted(tensor.name for tensor in tensors)


def _expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise GateFailed(f"{what}: expected {expected}, got {str(got)[:500]}")
