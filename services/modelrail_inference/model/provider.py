"""Which execution provider a model runs on."""

from __future__ import annotations

import enum


class Provider(enum.Enum):
    """What computes: the choice of the operator."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    AUTO = "auto"
