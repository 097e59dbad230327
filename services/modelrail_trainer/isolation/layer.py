"""The layers between a job and everything that is not the job."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LayerName(StrEnum):
    """What a layer is about."""

    SESSION = "SESSION"
    CLEAN_ENVIRONMENT = "CLEAN_ENVIRONMENT"
    MEMORY = "MEMORY"
    CPU_TIME = "CPU_TIME"
    FILE_SIZE = "FILE_SIZE"
    PROCESSES = "PROCESSES"
    NO_NEW_PRIVILEGES = "NO_NEW_PRIVILEGES"
    FILES = "FILES"
    NETWORK = "NETWORK"
    SIGNALS = "SIGNALS"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, as the process itself found it.

    Attributes:
        name: What it is about.
        active: Whether it holds.
        detail: How it holds and where it ends, or why it does not.
    """

    name: LayerName
    active: bool
    detail: str
