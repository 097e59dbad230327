"""Checkpoints: everything that training needs in order to go on as if it had never stopped.

A checkpoint is one safetensors file, which is read without running anything in it: tensors, and
numbers and texts in its header. It is written beside its place and moved there when the disk has
it, so what is there is whole. The format has no checksum, so the header holds the SHA-256 of the
file as it is with zeros in the place of the digest: what is found damaged all the same is passed
over for the one before.

Of use are those that this training has read or written; the two newest of them are kept. All
others, damaged or of something else, stay until there is a new one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

_KEPT = 2
_SUFFIX = ".safetensors"
_PARTIAL = ".partial"
_HEADER = "modelrail"
_DIGEST = "sha256"
_NO_DIGEST = "0" * 64
# As the format writes it. Quotes within the texts of the header are escaped, so nothing else reads
# like it.
_DIGEST_FIELD = f'"{_DIGEST}":"'.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where training stands.

    Attributes:
        epoch: The epoch that is under way, from 1.
        rows: Rows of it that were trained on.
        step: Optimiser steps made.
        loss_sum: Sum of the loss over those rows.
        best_epoch: Number of the best epoch so far; 0 for none.
        best_figure: Its figure.
    """

    epoch: int
    rows: int
    step: int
    loss_sum: float
    best_epoch: int
    best_figure: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read: a position, and named tensors (see `training_state`)."""

    position: Position
    tensors: Mapping[str, Tensor]


def training_state(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    order: Tensor,
    best_weights: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint.

    Args:
        network: Its weights and statistics.
        optimiser: What it remembers of earlier gradients.
        order: State of the generator of the rows' order at the beginning of the epoch, uint8.
        best_weights: Of the best epoch so far.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for number, memory in optimiser.state_dict()["state"].items():
        for name, value in memory.items():
            if value is not None:
                tensors[f"optimiser.{number}.{name}"] = torch.as_tensor(value)
    tensors |= {f"best.{name}": value for name, value in best_weights.items()}
    return tensors | {"random.order": order}


def restore_training_state(
    tensors: Mapping[str, Tensor], network: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Puts the tensors of a checkpoint back into network and optimiser."""
    network.load_state_dict(part_of(tensors, "network."))
    memories: dict[int, dict[str, Tensor]] = {}
    for key, value in part_of(tensors, "optimiser.").items():
        number, name = key.split(".", 1)
        memories.setdefault(int(number), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": memories, "param_groups": groups})


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


class Checkpoints:
    """The checkpoints of one job.

    Args:
        folder: Where they are; made with the first.
        identity: What they belong to (specification, data, versions, threads): one that was written
            for anything else is not gone on from.
        every_steps: Steps between two of them; 0: as many as `every_seconds` takes.
        every_seconds: Time between two of them otherwise, in seconds.
        on_saved: Told the steps that a new one holds, and those that training went on from.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        *,
        every_steps: int = 0,
        every_seconds: float = 30.0,
        on_saved: Callable[[int, int], None] = lambda step, since: None,
    ) -> None:
        self._folder = folder
        self._identity = dict(identity)
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._on_saved = on_saved
        self._since = 0
        self._kept: list[Path] = []  # newest last
        self._written = time.monotonic()
        self.passed_over: tuple[str, ...] = ()
        """In what a whole checkpoint differs that belongs to something else; empty if none does."""

    def remove_partial(self) -> None:
        """Removes what a process left that was killed while it wrote a checkpoint."""
        for path in self._folder.glob(f"step-*{_PARTIAL}"):
            path.unlink()

    def is_due(self, step: int) -> bool:
        """Whether it is time for one after so many steps."""
        if self._every_steps:
            return step % self._every_steps == 0
        return time.monotonic() - self._written >= self._every_seconds

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Writes a checkpoint; of those before it the newest that is of use stays, and no other.

        Raises:
            OSError: The disk does not take it; the ones before are as they were.
        """
        self._written = time.monotonic()
        header = json.dumps({"identity": self._identity, "position": asdict(position)})
        path = self._folder / f"step-{position.step:012d}{_SUFFIX}"
        partial = path.with_suffix(_PARTIAL)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        try:
            content = memoryview(
                safetensors.torch.save(_apart(tensors), {_HEADER: header, _DIGEST: _NO_DIGEST})
            )
            place = _place_of_digest(content)
            with partial.open("wb") as file:
                file.write(content[:place])
                file.write(hashlib.sha256(content).hexdigest().encode())
                file.write(content[place + len(_NO_DIGEST) :])
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        _sync(self._folder)
        self._keep(path)
        for other in self._newest_first():
            if other not in self._kept:
                other.unlink()
        self._on_saved(position.step, self._since)

    def newest(self) -> Checkpoint | None:
        """Returns the newest checkpoint of this job that is whole; None if there is none."""
        for path in self._newest_first():
            try:
                found = _read(path, self._identity)
            except _OtherIdentity as other:
                self.passed_over = self.passed_over or other.differing
                continue
            except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
                continue
            self._since = found.position.step
            self._keep(path)
            return found
        return None

    def _keep(self, path: Path) -> None:
        self._kept = [*(kept for kept in self._kept if kept != path), path][-_KEPT:]

    def _newest_first(self) -> Iterator[Path]:
        yield from sorted(self._folder.glob(f"step-*{_SUFFIX}"), reverse=True)


class _OtherIdentity(Exception):
    """A checkpoint belongs to something else; `differing` names in what."""

    def __init__(self, differing: tuple[str, ...]) -> None:
        super().__init__(*differing)
        self.differing = differing


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors none of which shares memory with another, as the file format wants them."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        own = value.contiguous()
        memory = own.untyped_storage().data_ptr()
        found[name] = own.clone() if memory in seen else own  # weights that two layers share
        seen.add(memory)
    return found


def _place_of_digest(content: memoryview | mmap.mmap) -> int:
    """Returns where in a file the digest begins.

    Raises:
        ValueError: The file has none.
    """
    end = 8 + int.from_bytes(content[:8], "little")  # of the header, after its length
    return bytes(content[8:end]).index(_DIGEST_FIELD) + 8 + len(_DIGEST_FIELD)


def _check(path: Path, digest: str) -> None:
    """Compares the content of a file with its digest.

    Raises:
        ValueError: It has another.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = _place_of_digest(content)
        with memoryview(content) as whole:
            found = hashlib.sha256(whole[:place])
            found.update(_NO_DIGEST.encode())
            found.update(whole[place + len(_NO_DIGEST) :])
    if found.hexdigest() != digest:
        raise ValueError(f"{path.name} is not what was written")


def _read(path: Path, identity: Mapping[str, str]) -> Checkpoint:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if _DIGEST not in metadata:
            # Of a trainer before this one; damage to it would not show.
            raise _OtherIdentity(("format",))
        _check(path, metadata[_DIGEST])
        header = json.loads(metadata[_HEADER])
        found = header["identity"]
        if found != identity:
            keys = sorted(found.keys() | identity.keys())
            raise _OtherIdentity(tuple(k for k in keys if found.get(k) != identity.get(k)))
        # Copies: the file may be removed, and the optimiser writes into its tensors.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return Checkpoint(Position(**header["position"]), tensors)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
