"""What a publisher may write into a version: every wrong field is named at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from modelrail.names import InvalidName, ModelVersionName, TrainingJobName, check_sha256
from modelrail_registry.resources import (
    ExportCertificate,
    File,
    Lineage,
    Metric,
    Signature,
    TensorSpec,
    VersionContent,
)
from modelrail_server.errors import FieldViolation

DATATYPES = frozenset(
    {"BOOL", "FP16", "FP32", "FP64", "BF16", "BYTES"}
    | {f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)}
)
MAX_CONTENT_BYTES = 1 << 20
"""Largest version as a message, in bytes."""
MAX_FILES = 256
MAX_ITEMS = 1024
"""Most inputs, outputs, metrics, packages and so on, of each."""
MAX_RANK = 64
MAX_CLASS_LABELS = 100_000
_MAX_DESCRIPTION_BYTES = 16 << 10
_MAX_PATH_BYTES = 255
_MAX_LABELS = 64
_MAX_TEXT = 1024
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,62}/[A-Za-z0-9][\w!#$&^.+-]{0,62}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

EXPECTED_PACKAGES = f"expected at most {MAX_ITEMS} names and versions of at most 256 characters"
EXPECTED_ATTEMPTS = (
    f"expected at most {MAX_ITEMS} methods of at most 256 characters, with failures of at "
    f"most {_MAX_TEXT}"
)

Violations = Iterator[FieldViolation]


def expected_files(count: int) -> str:
    """Returns what is said of a version with no files, or too many."""
    return f"expected 1 to {MAX_FILES} files, got {count}"


def check_description(field: str, text: str) -> Violations:
    """Gives what is wrong with a description."""
    size = len(text.encode())
    if size > _MAX_DESCRIPTION_BYTES:
        yield FieldViolation(field, f"expected at most {_MAX_DESCRIPTION_BYTES} bytes, got {size}")
    if "\0" in text:
        yield FieldViolation(field, "expected no NUL character, got one")


def check_labels(field: str, labels: Mapping[str, str]) -> Violations:
    """Gives what is wrong with a model's labels."""
    if len(labels) > _MAX_LABELS:
        yield FieldViolation(field, f"expected at most {_MAX_LABELS} labels, got {len(labels)}")
    for key in islice(labels, _MAX_LABELS):
        value = labels[key]
        if not key or _bad_text(key, 63):
            yield FieldViolation(
                field, f"expected keys of 1 to 63 printable characters, got {key[:80]!r}"
            )
        if _bad_text(value, 256):
            yield FieldViolation(
                f"{field}[{key[:63]!r}]",
                f"expected at most 256 printable characters, got {len(value)}",
            )


def check_content(content: VersionContent, prefix: str = "model_version.") -> Violations:
    """Gives everything that is wrong with the content of a version.

    Except for the lengths of its lists, which are looked at before it is made:
    `protocol/counts.py`.
    """
    yield from _check_files(content.files, f"{prefix}files")
    if content.signature is not None:
        yield from _check_signature(content.signature, f"{prefix}signature")
    yield from _check_metrics(content.metrics, f"{prefix}metrics")
    if content.lineage is not None:
        yield from _check_lineage(content.lineage, f"{prefix}lineage")
    if content.certificate is not None:
        yield from _check_certificate(content.certificate, f"{prefix}certificate")
    yield from check_description(f"{prefix}description", content.description)


def _bad_text(text: str, longest: int) -> bool:
    return len(text) > longest or _CONTROL.search(text) is not None


def _check_files(files: tuple[File, ...], field: str) -> Violations:
    if not files:
        yield FieldViolation(field, expected_files(0))
    seen: set[str] = set()
    for index, file in enumerate(files):
        at = f"{field}[{index}]"
        problem = _path_problem(file.path)
        if problem:
            yield FieldViolation(f"{at}.path", f"{problem}, got {file.path[:80]!r}")
        elif file.path in seen:
            yield FieldViolation(f"{at}.path", f"expected each path once, got {file.path!r} again")
        seen.add(file.path)
        yield from _check_name(f"{at}.sha256", file.sha256, check_sha256)
        if file.size_bytes < 0:
            yield FieldViolation(f"{at}.size_bytes", f"expected 0 or more, got {file.size_bytes}")
        if file.media_type and not _MEDIA_TYPE.fullmatch(file.media_type):
            yield FieldViolation(
                f"{at}.media_type", f"expected type/subtype, got {file.media_type[:80]!r}"
            )
    for index, file in enumerate(files):
        folders = file.path.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            if "/".join(folders[:depth]) in seen:
                yield FieldViolation(
                    f"{field}[{index}].path",
                    f"expected no path below another file, got {file.path[:80]!r}",
                )
                break


def _path_problem(path: str) -> str:
    if not path or len(path.encode()) > _MAX_PATH_BYTES:
        return f"expected 1 to {_MAX_PATH_BYTES} bytes"
    if _CONTROL.search(path) or "\\" in path:
        return "expected no control character and no backslash"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "expected a relative path without empty parts, '.' and '..'"
    return ""


def _check_name(field: str, value: str, check: Callable[[str], object]) -> Violations:
    try:
        check(value)
    except InvalidName as error:
        yield FieldViolation(field, str(error))


def _check_signature(signature: Signature, field: str) -> Violations:
    for role, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        seen: set[str] = set()
        for index, tensor in enumerate(tensors):
            at = f"{field}.{role}[{index}]"
            yield from _check_tensor(tensor, at)
            if tensor.name in seen:
                yield FieldViolation(f"{at}.name", f"expected each name once, got {tensor.name!r}")
            seen.add(tensor.name)


def _check_tensor(tensor: TensorSpec, field: str) -> Violations:
    if not tensor.name or _bad_text(tensor.name, _MAX_TEXT):
        yield FieldViolation(f"{field}.name", f"expected 1 to {_MAX_TEXT} printable characters")
    if tensor.datatype not in DATATYPES:
        yield FieldViolation(
            f"{field}.datatype",
            f"expected one of {', '.join(sorted(DATATYPES))}, got {tensor.datatype[:40]!r}",
        )
    for axis, extent in enumerate(tensor.shape):
        wrong = extent < 0 if isinstance(extent, int) else not extent or _bad_text(extent, 256)
        if wrong:
            yield FieldViolation(
                f"{field}.shape[{axis}]", f"expected a size from 0 or a symbol, got {extent!r:.80}"
            )
    if _bad_text(tensor.meaning, _MAX_TEXT):
        yield FieldViolation(f"{field}.meaning", f"expected at most {_MAX_TEXT} characters")
    if tensor.value_range is not None and not (
        -math.inf < tensor.value_range.minimum <= tensor.value_range.maximum < math.inf
    ):
        yield FieldViolation(
            f"{field}.value_range", "expected finite numbers, the minimum not above the maximum"
        )
    if any(_bad_text(label, _MAX_TEXT) for label in tensor.labels):
        yield FieldViolation(
            f"{field}.labels", f"expected printable labels of at most {_MAX_TEXT} characters"
        )


def _check_metrics(metrics: tuple[Metric, ...], field: str) -> Violations:
    for index, metric in enumerate(metrics):
        at = f"{field}[{index}]"
        if not metric.name or _bad_text(metric.name, 256):
            yield FieldViolation(f"{at}.name", "expected 1 to 256 printable characters")
        if not math.isfinite(metric.value):
            yield FieldViolation(f"{at}.value", f"expected a finite number, got {metric.value}")
        for part, text in (("split", metric.split), ("runtime", metric.runtime)):
            if _bad_text(text, 256):
                yield FieldViolation(f"{at}.{part}", "expected at most 256 printable characters")


def _check_lineage(lineage: Lineage, field: str) -> Violations:
    for part, text, check in (
        ("training_job", lineage.training_job, TrainingJobName.parse),
        ("dataset_sha256", lineage.dataset_sha256, check_sha256),
        ("spec_sha256", lineage.spec_sha256, check_sha256),
        ("parent_version", lineage.parent_version, ModelVersionName.parse),
    ):
        if text:
            yield from _check_name(f"{field}.{part}", text, check)
    for part, text in (("dataset", lineage.dataset), ("hardware", lineage.hardware)):
        if _bad_text(text, _MAX_TEXT):
            yield FieldViolation(f"{field}.{part}", f"expected at most {_MAX_TEXT} characters")
    yield from _check_packages(lineage.packages, f"{field}.packages")


def _check_packages(packages: Mapping[str, str], field: str) -> Violations:
    if any(
        not name or _bad_text(name, 256) or _bad_text(value, 256)
        for name, value in packages.items()
    ):
        yield FieldViolation(field, EXPECTED_PACKAGES)


def _check_certificate(certificate: ExportCertificate, field: str) -> Violations:
    numbers = [
        ("absolute_tolerance", certificate.absolute_tolerance),
        ("relative_tolerance", certificate.relative_tolerance),
    ]
    for index, parity in enumerate(certificate.outputs):
        numbers.append(
            (f"outputs[{index}].max_absolute_difference", parity.max_absolute_difference)
        )
        if not parity.name or _bad_text(parity.name, _MAX_TEXT):
            yield FieldViolation(
                f"{field}.outputs[{index}].name", f"expected 1 to {_MAX_TEXT} characters"
            )
    for name, number in numbers:
        if not 0 <= number < math.inf:
            yield FieldViolation(
                f"{field}.{name}", f"expected a finite number from 0, got {number}"
            )
    if certificate.rows < 0 or any(size < 1 for size in certificate.batch_sizes):
        yield FieldViolation(field, "expected rows from 0 and batch sizes from 1")
    yield from _check_packages(certificate.tools, f"{field}.tools")
    if any(
        not attempt.method or _bad_text(attempt.method, 256) or len(attempt.failure) > _MAX_TEXT
        for attempt in certificate.attempts
    ):
        yield FieldViolation(f"{field}.attempts", EXPECTED_ATTEMPTS)
