"""What the numbers of a training step are rounded to."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from modelrail_trainer.spec import Precision


def rounding(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which a forward pass and its loss are computed as `precision` says.

    The weights stay FP32, and so do their gradients. bfloat16 has the range of FP32, so that losses
    need no scaling (Kalamkar et al., 2019).

    Args:
        precision: Wanted by the job.
        device: What computes.
    """
    if precision is Precision.FP32:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
