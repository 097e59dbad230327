"""Where training stands: what the loop counts, and what it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

import torch
from torch import Tensor, nn

from modelrail_trainer.worker.learning.checkpoint import (
    Checkpoints,
    Position,
    part_of,
    restore_training_state,
    training_state,
)
from modelrail_trainer.worker.learning.order import Rows, batches
from modelrail_trainer.worker.learning.replicas import ALONE, Replicas
from modelrail_trainer.worker.learning.selection import BestEpoch
from modelrail_trainer.worker.learning.stop import Stopped, StopRequest
from modelrail_trainer.worker.part import Part


class Progress:
    """The position of training, kept in checkpoints.

    Args:
        network: What is trained.
        optimiser: What trains it.
        best: The best epoch so far.
        seed: Of the order of the rows.
        checkpoints: Where training goes on from, and leaves checkpoints; None: nowhere.
        log: Told what happens to checkpoints.
        replicas: The processes that train together.
        stop: Looked at after each step; None: nobody asks for it.

    Attributes:
        epoch: The epoch that is under way or comes next, from 1.
        rows: Rows of it that were trained on.
        step: Optimiser steps made.
        loss_sum: Sum of the loss over those rows.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        best: BestEpoch,
        *,
        seed: int,
        checkpoints: Checkpoints | None,
        log: Callable[[str], None],
        replicas: Replicas = ALONE,
        stop: StopRequest | None = None,
    ) -> None:
        self.epoch, self.rows, self.step, self.loss_sum = 1, 0, 0, 0.0
        self._network = network
        self._optimiser = optimiser
        self._best = best
        # The rows' order has a generator of its own, so that drop-out does not change it.
        self._generator = torch.Generator().manual_seed(seed)
        self._order_state = self._generator.get_state()
        self._checkpoints = checkpoints
        self._log = log
        self._replicas = replicas
        self._stop = stop or StopRequest()
        if checkpoints is not None and replicas.is_first:
            checkpoints.remove_partial()
        if checkpoints is not None and (found := checkpoints.newest()) is not None:
            restore_training_state(found.tensors, network, optimiser)
            replicas.restore_random(found.tensors, seed=seed + found.position.step)
            self._generator.set_state(found.tensors["random.order"])
            position = found.position
            weights = part_of(found.tensors, "best.")
            best.go_on(position.best_epoch, position.best_figure, weights)
            self.epoch, self.rows = position.epoch, position.rows
            self.step, self.loss_sum = position.step, position.loss_sum
            log(f"goes on from the checkpoint after step {self.step}, in epoch {self.epoch}")
        elif checkpoints is not None and checkpoints.passed_over:
            log(f"begins anew: its checkpoint is of another {', '.join(checkpoints.passed_over)}")

    def batches(self, part: Part, batch_size: int) -> Iterator[tuple[Rows, Tensor]]:
        """Yields what the epoch still trains on: some rows, and which are the next batch, [B]."""
        self._order_state = self._generator.get_state()
        yield from batches(part, batch_size, self._generator, skip=self.rows)

    def made_step(self, rows: int, loss: float) -> None:
        """A step was made on so many rows; writes a checkpoint when it is time for one.

        Raises:
            Stopped: A stop was asked for; the checkpoint is written.
        """
        self.step += 1
        self.rows += rows
        self.loss_sum += loss * rows
        # Whether it is time is for one clock to say: all have a part in a checkpoint.
        is_due, ends = self._replicas.first_says(self._is_time)
        if ends:
            self.stop()
        if is_due:
            self._save()

    def _is_time(self) -> tuple[bool, bool]:
        """Returns whether it is time for a checkpoint, and whether to stop."""
        checkpoints = self._checkpoints
        return checkpoints is not None and checkpoints.is_due(self.step), self._stop.made

    def stop(self) -> NoReturn:
        """Ends training here, in all processes, with a checkpoint.

        Raises:
            Stopped: Always.
        """
        kept = self._save()
        if kept:
            self._log(f"stops as it was asked to; a checkpoint holds all {self.step} steps")
        raise Stopped(self.step, kept=kept)

    def ended_epoch(self) -> None:
        """The epoch has ended, and the next one comes."""
        self.epoch += 1
        self.rows, self.loss_sum = 0, 0.0

    def _save(self) -> bool:
        """Writes a checkpoint; returns whether the first process has it on the disk."""
        if self._checkpoints is None:
            return False
        position = Position(
            epoch=self.epoch,
            rows=self.rows,
            step=self.step,
            loss_sum=self.loss_sum,
            best_epoch=self._best.number,
            best_figure=self._best.figure,
        )
        random_states = self._replicas.random_states()
        if not self._replicas.is_first:
            return False
        state = training_state(
            self._network, self._optimiser, self._order_state, self._best.weights
        )
        state |= random_states
        try:
            self._checkpoints.save(position, state)
        except OSError as error:  # training goes on, and the checkpoint before it stays
            goes_on = "" if self._stop.made else "training goes on and "
            self._log(
                f"no checkpoint after step {self.step}: {error.strerror}; {goes_on}the one before "
                "it stays; have room made on the trainer's disk"
            )
            return False
        return True
