"""The result of a job: the files of a version, and everything that is known about them.

The worker writes `result.json` last, by rename, so a directory with a result in it is a finished
job. The service reads it back and verifies every digest before it publishes anything.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from io import BufferedReader
from pathlib import Path

from modelrail_trainer.handover.evaluation import Evaluation, evaluation_from_record
from modelrail_trainer.handover.job_file import (
    NotAJobFileError,
    job_file_status,
    open_job_file,
    read_job_record,
)
from modelrail_trainer.handover.journal import MAX_METRICS, Metric, cut, metric_from_record
from modelrail_trainer.handover.record import (
    Record,
    count,
    items,
    nested,
    nested_if_any,
    real,
    text,
    texts,
    values,
    whole,
)

RESULT_NAME = "result.json"
MODEL_NAME = "model.onnx"
"""The graph that is served: from what clients send to what they read."""
CHECKPOINTS_NAME = "checkpoints"
"""Folder of what training goes on from after its process was lost."""
BARE_NAME = "bare.onnx"
"""The network alone, where the served graph encodes raw columns in front of it."""
REFERENCE_NAME = "reference.safetensors"
"""Rows and what PyTorch makes of them, beside the result and no part of the version."""
ONNX_MEDIA_TYPE = "application/onnx"
BATCH = "batch"
LENGTH = "length"
"""Axes of graphs: of the rows, and of the tokens of a row."""
MAX_RESULT_BYTES = 4 * 1024 * 1024
MAX_FILES = 256
"""As many as the registry takes for a version."""
_MAX_SHOWN_BYTES = 200
"""Of a text of a result, in a message."""


class ArtifactError(ValueError):
    """A result is not there, is malformed, or its files are not what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """One file of the version.

    Attributes:
        path: Relative to the job's directory, with `/` between the parts.
        sha256: Of the content, 64 lower-case hexadecimal digits.
        size_bytes: Of the content.
        media_type: RFC 6838 media type.
    """

    path: str
    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True)
class ValueRange:
    """An interval of values."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, type, shape and meaning of one input or output.

    Attributes:
        name: In the graph.
        datatype: Open Inference Protocol type name, such as `FP32`.
        shape: Fixed sizes as numbers, sizes that each request chooses as names (`batch`).
        meaning: What the numbers mean, for people.
        value_range: Range seen in training; None when unknown.
        labels: Names of the positions along the last dimension, for class scores.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]
    meaning: str = ""
    value_range: ValueRange | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes into the model and what comes out, in the order of the graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def has_batch(self) -> bool:
        """Whether a request chooses how many rows it sends; else it is always one."""
        return self.inputs[0].shape[0] == BATCH

    def of_one_row(self) -> Signature:
        """Returns the signature of a graph that takes one row at a time."""
        return Signature(
            *(
                tuple(replace(tensor, shape=(1, *tensor.shape[1:])) for tensor in tensors)
                for tensors in (self.inputs, self.outputs)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where the version comes from.

    The service adds the name of the job, which the worker does not know.
    """

    dataset: str
    dataset_sha256: str
    spec_sha256: str
    seed: int
    packages: dict[str, str]
    hardware: str = ""


@dataclass(frozen=True, slots=True)
class OutputParity:
    """The worst difference of one output, in its unit."""

    name: str
    max_absolute_difference: float


@dataclass(frozen=True, slots=True)
class ExportAttempt:
    """One way of exporting that was tried; `failure` is empty for the one that passed."""

    method: str
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCertificate:
    """The comparison of trained model and exported file; fields as in the registry's message."""

    opset: int
    absolute_tolerance: float
    relative_tolerance: float
    batch_sizes: tuple[int, ...]
    outputs: tuple[OutputParity, ...]
    rows: int
    tools: dict[str, str] = field(default_factory=dict)
    attempts: tuple[ExportAttempt, ...] = ()

    def with_outputs(self, others: tuple[OutputParity, ...]) -> ExportCertificate:
        """Returns the certificate for the worse of the known and these differences, by output."""
        worst = {output.name: output for output in self.outputs}
        for other in others:
            known = worst.setdefault(other.name, other)
            if other.max_absolute_difference > known.max_absolute_difference:
                worst[other.name] = other
        return replace(self, outputs=tuple(worst.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """All that a finished job hands over.

    Attributes:
        signature: Of `model.onnx`.
        bare_signature: Of `bare.onnx`, where there is one.
    """

    files: tuple[ResultFile, ...]
    signature: Signature
    metrics: tuple[Metric, ...]
    lineage: Lineage
    certificate: ExportCertificate
    evaluation: Evaluation | None = None
    bare_signature: Signature | None = None


def describe_file(directory: Path, path: str, media_type: str) -> ResultFile:
    """Measures one file of the directory."""
    with (directory / path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = file.tell()
    return ResultFile(path=path, sha256=sha256, size_bytes=size_bytes, media_type=media_type)


def save_result(result: TrainingResult, directory: Path) -> Path:
    """Writes `result.json` so that it is there whole or not at all, and returns its path.

    The files of the result are synced first: a result must never outlive the bytes that it speaks
    of.

    Raises:
        ValueError: A number is not finite.
    """
    for file in result.files:
        _sync(directory / file.path)
    return write_result(result, directory)


def write_result(result: TrainingResult, directory: Path) -> Path:
    """Writes `result.json` alone; see `save_result`."""
    content = json.dumps(asdict(result), ensure_ascii=False, allow_nan=False, indent=1)
    path = directory / RESULT_NAME
    partial = directory / (RESULT_NAME + ".partial")
    partial.write_text(content, encoding="utf-8")
    _sync(partial)
    partial.replace(path)
    _sync(directory)
    return path


def load_result(directory: Path) -> TrainingResult:
    """Reads `result.json`; the files are not looked at (see `verify_files`).

    Raises:
        ArtifactError: There is none, it is no plain file of the job, it is larger than
            `MAX_RESULT_BYTES`, or a field is wrong.
    """
    try:
        result = read_job_record(
            directory, RESULT_NAME, _result, what="result", most_bytes=MAX_RESULT_BYTES
        )
    except NotAJobFileError as error:
        raise ArtifactError(str(error)) from error
    if result is None:
        raise ArtifactError("the job left no result")
    return result


def _result(record: Record) -> TrainingResult:
    return TrainingResult(
        files=items(record, "files", _file),
        signature=_signature(nested(record, "signature")),
        metrics=items(record, "metrics", metric_from_record, most=MAX_METRICS),
        lineage=_lineage(nested(record, "lineage")),
        certificate=_certificate(nested(record, "certificate")),
        # Workers before this one told none.
        evaluation=nested_if_any(record, "evaluation", evaluation_from_record),
        bare_signature=nested_if_any(record, "bare_signature", _signature),
    )


def verify_files(result: TrainingResult, directory: Path) -> None:
    """Reads every file of the result and compares size and digest with what the result says.

    Raises:
        ArtifactError: There is no file in the result or there are too many, a path leads out of
            the directory or to no plain file of the job, or size or digest differ.
    """
    if not 1 <= len(result.files) <= MAX_FILES:
        raise ArtifactError(f"expected a result of 1 to {MAX_FILES} files, got {len(result.files)}")
    for file in result.files:
        with open_result_file(directory, file) as content:
            # What a file of another size holds is not worth the time.
            same_size = os.fstat(content.fileno()).st_size == file.size_bytes
            if not same_size or hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                raise ArtifactError(
                    f"{_named(file)}: expected {file.size_bytes} bytes with sha256 "
                    f"{cut(file.sha256, _MAX_SHOWN_BYTES)}, got other content"
                )


def open_result_file(directory: Path, file: ResultFile) -> BufferedReader:
    """Opens a file of the result for reading, and no file but one of the job's own.

    Raises:
        ArtifactError: It is missing, or something else lies under its path.
        OSError: The machine cannot read it now.
    """
    try:
        return open_job_file(directory, file.path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{_named(file)} is missing") from error
    except NotAJobFileError as error:
        raise ArtifactError(f"{_named(file)} cannot be published: {error}") from error


def has_result(directory: Path) -> bool:
    """Whether a job's process finished its result, which it moves into place last."""
    return job_file_status(directory, RESULT_NAME) is not None


def _named(file: ResultFile) -> str:
    return f"file {cut(file.path, _MAX_SHOWN_BYTES)!r}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file(record: Record) -> ResultFile:
    return ResultFile(
        path=text(record, "path"),
        sha256=text(record, "sha256"),
        size_bytes=count(record, "size_bytes"),
        media_type=text(record, "media_type"),
    )


def _signature(record: Record) -> Signature:
    return Signature(
        inputs=items(record, "inputs", _tensor), outputs=items(record, "outputs", _tensor)
    )


def _tensor(record: Record) -> TensorSpec:
    return TensorSpec(
        name=text(record, "name"),
        datatype=text(record, "datatype"),
        shape=values(record, "shape", int, str),
        meaning=text(record, "meaning"),
        value_range=nested_if_any(record, "value_range", _value_range),
        labels=values(record, "labels", str),
    )


def _value_range(record: Record) -> ValueRange:
    return ValueRange(real(record, "minimum"), real(record, "maximum"))


def _lineage(record: Record) -> Lineage:
    return Lineage(
        dataset=text(record, "dataset"),
        dataset_sha256=text(record, "dataset_sha256"),
        spec_sha256=text(record, "spec_sha256"),
        seed=whole(record, "seed"),
        packages=texts(record, "packages"),
        # Workers of an earlier version did not tell.
        hardware=text(record, "hardware") if "hardware" in record else "",
    )


def _certificate(record: Record) -> ExportCertificate:
    return ExportCertificate(
        opset=count(record, "opset"),
        absolute_tolerance=real(record, "absolute_tolerance"),
        relative_tolerance=real(record, "relative_tolerance"),
        batch_sizes=values(record, "batch_sizes", int),
        outputs=items(record, "outputs", _parity),
        rows=count(record, "rows"),
        tools=texts(record, "tools"),
        attempts=items(record, "attempts", _attempt),
    )


def _attempt(record: Record) -> ExportAttempt:
    return ExportAttempt(text(record, "method"), text(record, "failure"))


def _parity(record: Record) -> OutputParity:
    return OutputParity(text(record, "name"), real(record, "max_absolute_difference"))
