"""The training loop.

Two runs with the same specification give bitwise equal weights on one machine.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelrail_trainer.parameters import parameter_count
from modelrail_trainer.spec import (
    BinaryCrossEntropy,
    CustomModel,
    DatasetFacts,
    GradientDescent,
    Task,
    TrainingJobSpec,
    body_outputs,
)
from modelrail_trainer.worker.custom.code import UserCode
from modelrail_trainer.worker.custom.model import build_custom, check_outputs
from modelrail_trainer.worker.failure import NanLoss
from modelrail_trainer.worker.learning.checkpoint import Checkpoints
from modelrail_trainer.worker.learning.evaluate import evaluate, torch_predict
from modelrail_trainer.worker.learning.losses import at_each_place, loss_function
from modelrail_trainer.worker.learning.optimisers import build_optimiser, set_learning_rate
from modelrail_trainer.worker.learning.progress import Progress
from modelrail_trainer.worker.learning.schedules import learning_rate_factor
from modelrail_trainer.worker.learning.selection import BestEpoch
from modelrail_trainer.worker.preprocessing import fit_steps
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.training_data import TrainingData
from modelrail_trainer.worker.zoo.build import build_body
from modelrail_trainer.worker.zoo.network import Network, TwoClasses

# Multiplications in a forward pass over a batch. Below this, threads wait for each other longer
# than they compute; on a busy machine they made the digits example 8 times slower.
_WORK_WORTH_THREADS = 50_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What there is to tell after an epoch.

    Attributes:
        number: From 1.
        step: Optimiser steps so far.
        rows_per_second: Training rows a second in this epoch.
        train_loss: Mean of the job's loss over the epoch's batches, weighted by their rows, each
            measured before its step.
        validation: Figures on the validation rows.
    """

    number: int
    step: int
    rows_per_second: float
    train_loss: float
    validation: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training made.

    Attributes:
        network: In evaluation mode, with the weights that are to be exported.
        epochs: Epochs that were trained; fewer than wanted when the patience was used up.
        step: Optimiser steps made.
        best_epoch: Number of the best epoch, from 1.
        best_figure: Figure of its validation rows that made it the best.
    """

    network: Network
    epochs: int
    step: int
    best_epoch: int
    best_figure: float


def untrained(network: Network) -> Trained:
    """Returns a network that is taken as it is."""
    network.eval()
    return Trained(network=network, epochs=0, step=0, best_epoch=0, best_figure=math.nan)


def prepare_torch(seed: int, threads: int) -> None:
    """Makes torch deterministic in this process: one seed, deterministic kernels, fixed threads."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def threads_for(spec: TrainingJobSpec, facts: DatasetFacts, weights: int | None = None) -> int:
    """Returns how many threads a training step is worth.

    It follows from the specification and the processors alone, never from a measurement: another
    number of threads may round differently.

    Args:
        spec: What is trained.
        facts: On what.
        weights: How many it has; None: as many as `parameter_count` tells.
    """
    if weights is None:
        weights = parameter_count(spec.model, facts)
    batch_size = facts.rows if isinstance(spec.optimizer, GradientDescent) else spec.batch_size
    places = facts.row_shape[0] if facts.tokens else 1  # the weights are met at each token
    if weights * batch_size * places < _WORK_WORTH_THREADS:
        return 1
    return len(os.sched_getaffinity(0))  # what the process may really use


def without_padding(rows: Tensor) -> Tensor:
    """Cuts rows of tokens [B, T] to the longest of them, [B, 1 … T]; padding only takes time."""
    longest = int((rows != 0).sum(dim=1).max())
    return rows[:, : max(1, longest)]


def initial_network(
    spec: TrainingJobSpec, data: TrainingData, code: UserCode | None = None
) -> Network:
    """Prepares torch, and makes the network that training begins with.

    Args:
        spec: With defaults applied.
        data: Preprocessing is fitted on its training part.
        code: Where a custom model's function is; None: nowhere.

    Raises:
        UserCodeError: A custom model failed, or is not what it has to be.
    """
    facts = DatasetFacts(
        task=data.task,
        rows=len(data.train),
        row_shape=data.train.inputs.shape[1:],
        outputs=body_outputs(spec.loss, data.outputs),
        tokens=data.tokens,
    )
    prepare_torch(spec.seed, threads_for(spec, facts))
    inputs = torch.from_numpy(data.train.inputs)  # [N, *row_shape]
    preprocessing = fit_steps(spec.preprocessing, inputs)
    if not isinstance(spec.model, CustomModel):
        body = build_body(spec.model, facts.row_shape, facts.outputs, facts.tokens)
        return Network(preprocessing, _with_classes(body, spec))
    if code is None:
        raise ValueError("a custom model needs the folders of user code")
    body = build_custom(code, spec.model, facts, seed=spec.seed, trains=spec.epochs > 0)
    check_outputs(code, spec.model.entry_point, Network(preprocessing, body), inputs, facts.outputs)
    # How many weights it has, and what it did to torch, is known now.
    weights = sum(parameter.numel() for parameter in body.parameters())
    prepare_torch(spec.seed, threads_for(spec, facts, weights))
    return Network(preprocessing, _with_classes(body, spec))


def _with_classes(body: nn.Module, spec: TrainingJobSpec) -> nn.Module:
    if isinstance(spec.loss, BinaryCrossEntropy):
        return nn.Sequential(body, TwoClasses())  # [B, 1] to [B, 2]
    return body


def fit(
    spec: TrainingJobSpec,
    data: TrainingData,
    on_epoch: Callable[[Epoch], None],
    checkpoints: Checkpoints | None = None,
    log: Callable[[str], None] = lambda text: None,
    *,
    network: Network | None = None,
) -> Trained:
    """Trains a network, and gives it the weights of its best epoch or of the last.

    Args:
        spec: With defaults applied.
        data: Only its training and validation parts are looked at.
        on_epoch: Called after each epoch.
        checkpoints: Where training goes on from, and leaves checkpoints; None: it begins anew.
        log: Told what happens beside training.
        network: What `initial_network` made; None: it is made here.

    Raises:
        NanLoss: The loss became infinite or not a number.
    """
    network = network or initial_network(spec, data)

    inputs = torch.from_numpy(data.train.inputs)  # [N, *row_shape]
    targets = torch.from_numpy(data.train.targets)  # [N], [N, outputs] or [N, length]
    rows = len(inputs)
    has_padding = data.tokens > 0 and data.task is not Task.LANGUAGE
    batch_size = rows if isinstance(spec.optimizer, GradientDescent) else spec.batch_size

    loss_of = loss_function(spec.loss)
    if data.task is Task.LANGUAGE:
        loss_of = at_each_place(loss_of)
    optimiser = build_optimiser(spec.optimizer, network.parameters())

    learning_rate = optimiser.param_groups[0]["lr"]
    steps_per_epoch = math.ceil(rows / batch_size)
    steps = spec.epochs * steps_per_epoch

    best = BestEpoch(spec.selection)
    progress = Progress(network, optimiser, best, seed=spec.seed, checkpoints=checkpoints, log=log)
    for number in range(progress.epoch, spec.epochs + 1):
        started, before = time.perf_counter(), progress.rows
        network.train()
        for chosen in progress.batches(rows, batch_size):  # [B]
            factor = learning_rate_factor(
                spec.schedule, progress.step, steps_per_epoch=steps_per_epoch, steps=steps
            )
            set_learning_rate(optimiser, learning_rate * factor)
            optimiser.zero_grad()
            batch = without_padding(inputs[chosen]) if has_padding else inputs[chosen]
            loss = loss_of(network(batch), targets[chosen])  # []
            value = loss.item()
            if not math.isfinite(value):
                raise NanLoss(
                    f"the loss became {value} in epoch {number}, step {progress.step + 1}"
                )
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            if spec.max_gradient_norm > 0:
                nn.utils.clip_grad_norm_(network.parameters(), spec.max_gradient_norm)
            optimiser.step()
            progress.made_step(len(chosen), value)
            made_progress()
        seconds = time.perf_counter() - started
        validation = evaluate(torch_predict(network), data.validation, data.task)
        for name, figure in validation.items():
            if not math.isfinite(figure):
                raise NanLoss(f"the validation {name} became {figure} after epoch {number}")
        on_epoch(
            Epoch(
                number=number,
                step=progress.step,
                rows_per_second=(rows - before) / max(seconds, 1e-9),
                train_loss=progress.loss_sum / rows,
                validation=validation,
            )
        )
        progress.ended_epoch()
        best.consider(number, validation, network)
        if best.gives_up(number):
            break
    best.restore(network)
    network.eval()
    return Trained(
        network=network,
        epochs=number,
        step=progress.step,
        best_epoch=best.number,
        best_figure=best.figure,
    )
