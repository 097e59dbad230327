"""What is trained: an architecture of the zoo, or a module of the job's owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelrail_trainer.zoo import ARCHITECTURES, ZooModel


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomModel:
    """A module that a function of the job's owner makes.

    Attributes:
        entry_point: `module:function`.
        arguments: What it is given by name, as JSON values.
    """

    entry_point: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


Model = ZooModel | CustomModel

MODELS: Mapping[str, type] = {**ARCHITECTURES, "custom": CustomModel}
"""By their names in a specification."""
