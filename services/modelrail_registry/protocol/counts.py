"""How long the lists of a version may be: looked at before values are made of their items."""

from __future__ import annotations

from modelrail.registry.v1 import registry_pb2 as pb
from modelrail_registry import rules
from modelrail_server.errors import FieldViolation


def check_counts(version: pb.ModelVersion, prefix: str = "model_version.") -> rules.Violations:
    """Gives what is too large about a version, without looking at what its lists hold."""
    size = version.ByteSize()
    if size > rules.MAX_CONTENT_BYTES:
        yield FieldViolation(
            prefix.removesuffix("."),
            f"expected at most {rules.MAX_CONTENT_BYTES} bytes, got {size}",
        )
        return
    count = len(version.files)
    if count > rules.MAX_FILES:
        yield FieldViolation(f"{prefix}files", rules.expected_files(count))
    yield from _check_signature(version.signature, f"{prefix}signature")
    yield from _at_most(rules.MAX_ITEMS, len(version.metrics), f"{prefix}metrics")
    if len(version.lineage.packages) > rules.MAX_ITEMS:
        yield FieldViolation(f"{prefix}lineage.packages", rules.EXPECTED_PACKAGES)
    yield from _check_certificate(version.certificate, f"{prefix}certificate")


def _at_most(limit: int, count: int, field: str, what: str = "") -> rules.Violations:
    if count > limit:
        yield FieldViolation(field, f"expected at most {limit}{what}, got {count}")


def _check_signature(signature: pb.Signature, field: str) -> rules.Violations:
    for role, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        if len(tensors) > rules.MAX_ITEMS:
            yield from _at_most(rules.MAX_ITEMS, len(tensors), f"{field}.{role}")
            continue
        for index, tensor in enumerate(tensors):
            at = f"{field}.{role}[{index}]"
            yield from _at_most(rules.MAX_RANK, len(tensor.shape), f"{at}.shape", " dimensions")
            yield from _at_most(rules.MAX_CLASS_LABELS, len(tensor.labels), f"{at}.labels")


def _check_certificate(certificate: pb.ExportCertificate, field: str) -> rules.Violations:
    if max(len(certificate.outputs), len(certificate.batch_sizes)) > rules.MAX_ITEMS:
        yield FieldViolation(field, f"expected at most {rules.MAX_ITEMS} outputs and batch sizes")
    if len(certificate.tools) > rules.MAX_ITEMS:
        yield FieldViolation(f"{field}.tools", rules.EXPECTED_PACKAGES)
    if len(certificate.attempts) > rules.MAX_ITEMS:
        yield FieldViolation(f"{field}.attempts", rules.EXPECTED_ATTEMPTS)
