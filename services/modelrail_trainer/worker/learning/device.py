"""What a process of a job computes on."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from modelrail_trainer.failure import DeviceUnavailable
from modelrail_trainer.spec import Device

CPU = torch.device("cpu")


def device_for(wanted: Device, *, rank: int = 0, count: int = 1) -> torch.device:
    """Returns what a process computes on: a GPU of its own, or the processor, which all share.

    Args:
        wanted: By the job.
        rank: Of the process, from 0.
        count: Processes of the job.

    Raises:
        DeviceUnavailable: The job wants GPUs, and there are fewer than processes.
    """
    if wanted is Device.CPU:
        return CPU
    found = torch.cuda.device_count()
    if found >= count:
        return torch.device("cuda", rank)
    if wanted is Device.CUDA:
        raise DeviceUnavailable(
            f"device: CUDA devices that PyTorch can use: expected {count}, one for each process of "
            f"the job, got {found}; ask for DEVICE_CPU or fewer processes, or have the trainer "
            "started where the driver, CUDA_VISIBLE_DEVICES and PyTorch's build give it enough"
        )
    return CPU


def described(device: torch.device) -> str:
    """Returns the device in words, for the job's owner."""
    if device.type == "cpu":
        return "the processor"
    return f"{device}, {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def device_of(network: nn.Module) -> torch.device:
    """Returns where a network's weights are; the processor for one that has none."""
    return next((t.device for t in chain(network.parameters(), network.buffers())), CPU)
