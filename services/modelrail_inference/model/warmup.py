"""Sample requests that a version answers before it is ready: what a configuration can say."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WARMUP_FOLDER: Final = "warmup"
"""Name of the folder, beside the configuration, that holds the elements of sample inputs."""


class Fill(enum.Enum):
    """Where the elements of a sample input come from, if not from a file."""

    ZERO = "zero"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class SampleInput:
    """One input of a sample request.

    Attributes:
        datatype: Type of the elements.
        dims: Length of each axis, without the batch axis.
        source: What the elements are, or the file with their raw encoding.
    """

    datatype: str
    dims: tuple[int, ...]
    source: Fill | Path


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """One sample request.

    Attributes:
        name: Name, for messages.
        batch_size: Items; every item has the same elements. 0 where there is no batch axis.
        count: How often it runs.
        inputs: The inputs by name.
    """

    name: str
    batch_size: int
    count: int
    inputs: Mapping[str, SampleInput]
