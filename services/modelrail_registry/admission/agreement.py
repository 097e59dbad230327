"""The publisher's signature against the graph's: what both say must agree, the rest is kept."""

from __future__ import annotations

from collections.abc import Iterator

from modelrail_registry.admission.gate import Verdict
from modelrail_registry.resources import MODEL_FILE, Signature, TensorSpec
from modelrail_server.errors import FieldViolation, InvalidArgument


def agreed_signature(given: Signature | None, verdict: Verdict) -> Signature | None:
    """Returns the signature to keep: the graph's when none is given, else the given one.

    Raises:
        InvalidArgument: Names, datatypes or shapes differ; every difference is listed.
    """
    found = verdict.signature
    if given is None or found is None or not (given.inputs or given.outputs):
        return found if found is not None else given
    violations = [
        *_differences("model_version.signature.inputs", given.inputs, found.inputs, verdict),
        *_differences("model_version.signature.outputs", given.outputs, found.outputs, verdict),
    ]
    if violations:
        raise InvalidArgument(
            f"the signature does not agree with {MODEL_FILE}: "
            f"{violations[0].field}: {violations[0].description}",
            reason="SIGNATURE_MISMATCH",
            violations=violations,
        )
    return given


def _differences(
    field: str, given: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...], verdict: Verdict
) -> Iterator[FieldViolation]:
    names, expected = [t.name for t in given], [t.name for t in found]
    if names != expected:
        yield FieldViolation(field, f"expected the names {expected} of the graph, got {names}")
        return
    for index, (mine, theirs) in enumerate(zip(given, found, strict=True)):
        at = f"{field}[{index}]"
        if mine.datatype != theirs.datatype:
            yield FieldViolation(
                f"{at}.datatype", f"expected {theirs.datatype} as in the graph, got {mine.datatype}"
            )
        if not _same_shape(mine, theirs, verdict):
            yield FieldViolation(
                f"{at}.shape",
                f"expected {list(theirs.shape)} as in the graph, got {list(mine.shape)}",
            )


def _same_shape(mine: TensorSpec, theirs: TensorSpec, verdict: Verdict) -> bool:
    if len(mine.shape) != len(theirs.shape):
        return False
    return all(
        # A dimension that the graph does not name may be given any name.
        isinstance(extent, str)
        if (theirs.name, axis) in verdict.anonymous
        else extent == theirs.shape[axis]
        for axis, extent in enumerate(mine.shape)
    )
