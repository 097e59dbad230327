"""What is said of an error: to callers without addresses and paths, in the log with them."""

from __future__ import annotations

from modelrail_inference.model.definition import LoadError
from modelrail_inference.sources.registry.model_registry import RegistryUnreachableError
from modelrail_inference.sources.source import os_reason


def told(error: Exception) -> str:
    """Returns what callers may know."""
    if isinstance(error, OSError):
        return f"the files cannot be written: {os_reason(error)}"
    return str(error)


def detailed(error: Exception) -> str:
    """Returns what the log says."""
    detail = error.detail if isinstance(error, RegistryUnreachableError) else ""
    return f"{error}: {detail}" if detail else str(error)


def defect(error: Exception) -> Exception | None:
    """Returns an error that nobody expects, whose trace belongs into the log; else None."""
    return None if isinstance(error, RegistryUnreachableError | LoadError | OSError) else error
