"""Errors for callers, as JSON between supervisor and worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from modelrail_server.errors import FieldViolation, ServiceError

__all__ = ["InternalFailure", "error_document", "error_of"]


class InternalFailure(Exception):
    """The other process failed by a defect, and has written why into its log."""


def error_document(error: ServiceError) -> dict[str, Any]:
    """Returns everything that a caller is told."""
    return {
        "kind": type(error).__name__,
        "message": error.message,
        "reason": error.reason,
        "violations": [asdict(violation) for violation in error.violations],
        "resource": error.resource,
        "retry_after_seconds": error.retry_after_seconds,
        "metadata": error.metadata,
    }


def error_of(document: Mapping[str, Any]) -> Exception:
    """Returns the error that `error_document` described; an `InternalFailure` for all others."""
    kinds = {kind.__name__: kind for kind in ServiceError.__subclasses__()}
    kind = kinds.get(document.get("kind", ""))
    if kind is None:
        return InternalFailure(str(document.get("message", "internal error")))
    return kind(
        document["message"],
        reason=document["reason"],
        violations=[FieldViolation(**violation) for violation in document["violations"]],
        resource=document["resource"],
        retry_after_seconds=document["retry_after_seconds"],
        **document["metadata"],
    )
