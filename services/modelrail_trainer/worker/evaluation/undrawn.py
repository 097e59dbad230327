"""Imports torchmetrics without what it could draw with.

Where matplotlib is installed, torchmetrics imports it whole, and matplotlib looks for the fonts of
the machine and for a folder to remember them in. A job has neither, so it would look every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from lightning_utilities.core.imports import RequirementCache


@contextmanager
def undrawn() -> Iterator[None]:
    """Has torchmetrics, when it is first imported inside, believe that nothing can draw."""
    is_there = RequirementCache.__bool__

    def is_wanted(requirement: RequirementCache) -> bool:
        return requirement.requirement != "matplotlib" and is_there(requirement)

    with patch.object(RequirementCache, "__bool__", is_wanted):
        yield
