"""The processes that train one network together, each on its share of every batch.

torchrun starts them, and torch's DistributedDataParallel (Li et al., 2020) averages their
gradients, so all of them make the same steps. The first one, of rank 0, reads the data, judges
epochs and keeps checkpoints; the others follow what it says. The batch is divided, not multiplied:
with any number of processes a job makes the same steps, apart from rounding, drop-out and what
normalization over a batch sees of it.

One process is the ordinary case, and then nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from modelrail_trainer.spec import Device
from modelrail_trainer.worker.learning.device import CPU, device_for
from modelrail_trainer.worker.part import Array, Part, file_of
from modelrail_trainer.worker.training_data import TrainingData

T = TypeVar("T")
# The others wait while the first reads the data or evaluates; whether it hangs is seen by whoever
# watches the job.
_PATIENCE = timedelta(days=7)
# Before that they start at the same time, and one that is missing will not come.
_MEETING = timedelta(minutes=5)
_RANDOM, _RANDOM_CUDA = "random.torch", "random.cuda"


@dataclass(frozen=True, slots=True)
class Replicas:
    """This process among those of its job.

    Attributes:
        rank: From 0.
        count: Number of processes.
        device: What this process computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    # Data

    def share_data(self, data: TrainingData | None) -> TrainingData:
        """Returns the first process's data in all of them; rows in files are not copied.

        Args:
            data: What the first process read; None in the others.
        """
        if self.count == 1:
            assert data is not None  # noqa: S101  # the first process has read it
            return data
        # What raw rows become is the first process's business.
        sent = None if data is None else _packed(replace(data, raw=None))
        received = self.told(sent)
        if data is not None:
            return data
        assert received is not None  # noqa: S101  # the first process has read it
        return _unpacked(received)

    def told(self, value: T) -> T:
        """Returns the first process's value in all of them."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def first_says(self, ask: Callable[[], T]) -> T:
        """Returns what the first process finds, in all of them; only the first is asked."""
        if self.count == 1:
            return ask()
        return self.told(ask() if self.is_first else None)  # type: ignore[return-value]  # as told

    # Steps

    def replicate(self, network: nn.Module, *, uses_all: bool) -> nn.Module:
        """Returns what is called in training: the network, with its gradients averaged.

        Args:
            network: It has the same weights in all processes.
            uses_all: Whether every step uses all parameters; if not, those that it does not use
                are looked for, which takes time in each.
        """
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, find_unused_parameters=not uses_all)

    def share(
        self,
        chosen: Tensor,  # [B]
        row_weights: Tensor | None = None,  # [B] or [B, T]
    ) -> tuple[Tensor, float]:
        """Returns this process's part of a batch, [b] of [B], and the weight of its mean loss.

        With the weight, the mean over all processes is the mean over the batch.

        Args:
            chosen: The batch.
            row_weights: How much each of its rows counts in the mean; None: one as much as another.
        """
        if self.count == 1:
            return chosen, 1.0
        mine = chosen[self.rank :: self.count]
        if len(mine) == 0:  # every process has to take part in every step
            return chosen[:1], 0.0
        if row_weights is None:
            return mine, len(mine) * self.count / len(chosen)
        part = row_weights[self.rank :: self.count].sum() / row_weights.sum()
        return mine, float(part) * self.count

    def weighed(self, loss: Tensor, weight: float) -> Tensor:
        """Returns a loss, [], times its weight; where one process trains that is 1."""
        return loss if self.count == 1 else loss * weight

    def mean(self, value: float) -> float:
        """Returns the mean of a number over all processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.count

    # Random numbers

    def part_ways(self, seed: int) -> None:
        """Gives each process random numbers of its own, once the weights are drawn."""
        if self.rank:
            torch.manual_seed(seed + self.rank)

    def random_states(self) -> dict[str, Tensor]:
        """Returns the states of torch's generators in all processes, by name."""
        found: dict[str, Tensor] = {}
        own = {_RANDOM: torch.get_rng_state()}  # uint8, in the processor's memory
        if self.device.type == "cuda":
            own[_RANDOM_CUDA] = torch.cuda.get_rng_state(self.device)
        for generator, state in own.items():
            states = [state]
            if self.count > 1:
                states = [torch.empty_like(state) for _ in range(self.count)]
                dist.all_gather(states, state)
            found |= {_random_name(generator, rank): s for rank, s in enumerate(states)}
        return found

    def restore_random(self, tensors: Mapping[str, Tensor], *, seed: int) -> None:
        """Puts this process's generator back; one that a checkpoint does not know begins anew.

        Args:
            tensors: Of a checkpoint, which may be of another number of processes.
            seed: For a process that it does not know.
        """
        state = tensors.get(_random_name(_RANDOM, self.rank))
        of_gpu = tensors.get(_random_name(_RANDOM_CUDA, self.rank))
        if state is None or (of_gpu is None and self.device.type == "cuda"):
            torch.manual_seed(seed + self.rank)  # of every device
            return
        torch.set_rng_state(state)
        if of_gpu is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(of_gpu, self.device)


def _random_name(generator: str, rank: int) -> str:
    return f"{generator}.{rank}" if rank else generator


ALONE = Replicas()
"""One process that trains by itself."""


def join_replicas(wanted: Device = Device.ANY) -> Replicas:
    """Joins the other processes of the job, which torchrun started; without them it is alone.

    Args:
        wanted: What the job is to be computed on.

    Raises:
        DeviceUnavailable: There are fewer GPUs than the job needs.
    """
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = device_for(wanted, rank=rank, count=count)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count > 1:
        # Only gradients lie on the GPUs; what the processes tell each other does not.
        backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        _meet(backends, rank, count)
    return Replicas(rank, count, device)


def _meet(backends: str, rank: int, count: int) -> None:
    """Makes the group, once all of its processes are there.

    Raises:
        DistError: torchrun or one of the processes is gone, or did not come in time.
    """
    store, _, _ = next(rendezvous("env://", rank, count, timeout=_MEETING))
    store.set_timeout(_MEETING)
    store.set(f"here/{rank}", "")
    store.wait([f"here/{other}" for other in range(count)])
    store.set_timeout(_PATIENCE)
    dist.init_process_group(backends, store=store, rank=rank, world_size=count, timeout=_PATIENCE)


def tells_of_a_lost_replica(error: Exception) -> bool:
    """Whether an error only says that another process of the job is gone."""
    if "WORLD_SIZE" not in os.environ:
        return False
    # Of its own type torch raises some, and what gloo says names a file of gloo.
    of_gloo = type(error) is RuntimeError and "gloo" in str(error)
    return of_gloo or isinstance(error, dist.DistError)


@dataclass(frozen=True, slots=True)
class _InFile:
    """Where an array lies in a file that other processes can map too."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def _packed(data: TrainingData) -> TrainingData:
    parts: dict[str, Any] = {
        name: Part(_place_of(part.inputs), _place_of(part.targets))  # type: ignore[arg-type]
        for name, part in _parts(data).items()
    }
    return replace(data, **parts)


def _unpacked(data: TrainingData) -> TrainingData:
    parts: dict[str, Any] = {
        name: Part(_array_at(part.inputs), _array_at(part.targets))
        for name, part in _parts(data).items()
    }
    return replace(data, **parts)


def _parts(data: TrainingData) -> dict[str, Part]:
    return {"train": data.train, "validation": data.validation, "test": data.test}


def _place_of(array: Array) -> Array | _InFile:
    """Returns where an array lies in a file, or the array, when it lies in memory."""
    root = file_of(array)
    if root is None or not array.flags.c_contiguous:
        return np.ascontiguousarray(array)
    offset = array.ctypes.data - root.ctypes.data + root.offset
    return _InFile(str(root.filename), array.dtype.str, array.shape, offset)


def _array_at(place: Array | _InFile) -> Array:
    if not isinstance(place, _InFile):
        return place
    # Nobody writes into it; torch warns of arrays that cannot be written.
    return np.memmap(place.path, place.dtype, "r+", offset=place.offset, shape=place.shape)
