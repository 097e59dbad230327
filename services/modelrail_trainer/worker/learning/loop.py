"""The training loop.

Two runs with the same specification give bitwise equal weights on one machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from modelrail_trainer.failure import NanLoss
from modelrail_trainer.spec import CustomModel, Task, TrainingJobSpec
from modelrail_trainer.worker.learning.checkpoint import Checkpoints
from modelrail_trainer.worker.learning.evaluate import evaluate, torch_predict
from modelrail_trainer.worker.learning.initialization import initial_network, takes_all_rows
from modelrail_trainer.worker.learning.losses import at_each_place, loss_function, row_weights
from modelrail_trainer.worker.learning.pace import Pace, Reports, Speed
from modelrail_trainer.worker.learning.precision import rounding
from modelrail_trainer.worker.learning.progress import Progress
from modelrail_trainer.worker.learning.replicas import ALONE, Replicas
from modelrail_trainer.worker.learning.schedules import learning_rate_factor
from modelrail_trainer.worker.learning.selection import BestEpoch
from modelrail_trainer.worker.learning.stop import StopAsked, StopRequest
from modelrail_trainer.worker.network import Network
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.training_data import TrainingData


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What there is to tell after an epoch.

    Attributes:
        number: From 1.
        step: Optimiser steps so far.
        steps: Optimiser steps of all epochs.
        rows_per_second: Training rows a second in this epoch.
        train_loss: Mean of the job's loss over the epoch's batches, weighted by their rows, each
            measured before its step.
        validation: Figures on the validation rows.
        eta_seconds: Until the last epoch ends, at the present speed.
    """

    number: int
    step: int
    steps: int
    rows_per_second: float
    train_loss: float
    validation: dict[str, float]
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interim:
    """What there is to tell in the middle of an epoch.

    Attributes:
        epoch: Number of the epoch that is under way.
        step: Optimiser steps so far.
        steps: Optimiser steps of all epochs.
        rows_per_second: Training rows a second in this epoch.
        figures: Figures on the validation rows; empty when they were not looked at.
        eta_seconds: Until the last epoch ends, at the present speed.
    """

    epoch: int
    step: int
    steps: int
    rows_per_second: float
    figures: dict[str, float]
    eta_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training made.

    Attributes:
        network: In evaluation mode, with the weights that are to be exported.
        epochs: Epochs that were trained; fewer than wanted when the patience was used up.
        step: Optimiser steps made.
        steps: Optimiser steps of all epochs that were wanted.
        best_epoch: Number of the best epoch, from 1.
        best_figure: Figure of its validation rows that made it the best.
    """

    network: Network
    epochs: int
    step: int
    steps: int
    best_epoch: int
    best_figure: float


def untrained(network: Network) -> Trained:
    """Returns a network that is taken as it is."""
    network.eval()
    return Trained(network=network, epochs=0, step=0, steps=0, best_epoch=0, best_figure=math.nan)


def without_padding(rows: Tensor) -> Tensor:
    """Cuts rows of tokens [B, T] to the longest of them, [B, 1 … T]; padding only takes time."""
    longest = int((rows != 0).sum(dim=1).max())
    return rows[:, : max(1, longest)]


def fit(  # noqa: PLR0915  # a loop that reads from top to bottom
    spec: TrainingJobSpec,
    data: TrainingData,
    on_epoch: Callable[[Epoch], None],
    checkpoints: Checkpoints | None = None,
    log: Callable[[str], None] = lambda text: None,
    *,
    network: Network | None = None,
    replicas: Replicas = ALONE,
    on_interim: Callable[[Interim], None] = lambda interim: None,
    reports: Reports | None = None,
    stop: StopRequest | None = None,
) -> Trained:
    """Trains a network, and gives it the weights of its best epoch or of the last.

    Args:
        spec: With defaults applied.
        data: Only its training and validation parts are looked at.
        on_epoch: Called after each epoch.
        checkpoints: Where training goes on from, and leaves checkpoints; None: it begins anew.
        log: Told what happens beside training.
        network: What `initial_network` made; None: it is made here.
        replicas: The processes that train together.
        on_interim: Called within an epoch: after each validation, and when a report is due.
        reports: Say when; None: every few seconds.
        stop: Asks for an early end, which leaves a checkpoint; None: nobody asks.

    Raises:
        DataError: The validation rows do not allow the figure that the best epoch is told by.
        NanLoss: The loss became infinite or not a number.
        Stopped: A stop was asked for.
    """
    network = network or initial_network(spec, data, replicas=replicas)

    rows, device = len(data.train), replicas.device
    has_padding = data.tokens > 0 and data.task is not Task.LANGUAGE
    batch_size = rows if takes_all_rows(spec) else spec.batch_size

    # Nobody knows what a model of the owner's leaves out.
    model = replicas.replicate(network, uses_all=not isinstance(spec.model, CustomModel))
    replicas.part_ways(spec.seed)
    loss_of = loss_function(spec.loss)
    if data.task is Task.LANGUAGE:
        loss_of = at_each_place(loss_of)
    weights_of = row_weights(spec.loss) if replicas.count > 1 else None
    if spec.optimizer is None:
        raise ValueError("the specification has no optimiser")
    parameters = list(network.parameters())
    optimiser = spec.optimizer.build(parameters)

    learning_rate = optimiser.param_groups[0]["lr"]
    steps_per_epoch = math.ceil(rows / batch_size)
    steps = spec.epochs * steps_per_epoch

    best = BestEpoch(spec.selection)
    progress = Progress(
        network,
        optimiser,
        best,
        seed=spec.seed,
        checkpoints=checkpoints,
        log=log,
        replicas=replicas,
        stop=stop,
    )
    pace = Pace(spec.epochs * rows, (progress.epoch - 1) * rows + progress.rows)
    reports = reports or Reports()
    precision = rounding(spec.precision, device)
    for number in range(progress.epoch, spec.epochs + 1):
        speed = Speed(progress.rows)
        network.train()
        for some, chosen in progress.batches(data.train, batch_size):  # [W, ...], [B]
            factor = learning_rate_factor(
                spec.schedule, progress.step, steps_per_epoch=steps_per_epoch, steps=steps
            )
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * factor
            _forget_gradients(parameters)
            weights = weights_of(some.targets[chosen]) if weights_of else None  # [B] or [B, T]
            # [b], all of [B] where one process trains
            mine, weight = replicas.share(chosen, weights)
            batch, targets = some.at(mine)  # [b, *row_shape], [b, ...]
            if has_padding:
                batch = without_padding(batch)
            batch, targets = batch.to(device), targets.to(device)
            with precision:
                loss = replicas.weighed(loss_of(model(batch), targets), weight)  # []
            value = replicas.mean(loss.item())
            if not math.isfinite(value):
                raise NanLoss(
                    f"the loss became {value} in epoch {number}, step {progress.step + 1}"
                )
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            if spec.max_gradient_norm > 0:
                nn.utils.clip_grad_norm_(network.parameters(), spec.max_gradient_norm)
            optimiser.step()
            done = progress.rows + len(chosen)
            is_validated = _is_validated(spec, progress.step + 1)
            # Before a checkpoint of this step: who goes on from there has told it.
            if done < rows and (is_validated or reports.is_due()):
                rate = speed.rows_per_second(done)
                figures: dict[str, float] = {}
                if is_validated:
                    with speed.paused():
                        # Not given up when a stop is asked for: it would never be told then.
                        when = f"in epoch {number}, step {progress.step + 1}"
                        figures = _validate(network, data, when, replicas)
                        network.train()
                on_interim(
                    Interim(
                        epoch=number,
                        step=progress.step + 1,
                        steps=steps,
                        rows_per_second=rate,
                        figures=figures,
                        eta_seconds=pace.eta_seconds(
                            (number - 1) * rows + done, remembered=is_validated
                        ),
                    )
                )
                reports.told()
            progress.made_step(len(chosen), value)
            made_progress()
        rate = speed.rows_per_second(rows)
        try:
            validation = _validate(network, data, f"after epoch {number}", replicas, stop)
        except StopAsked:  # who goes on from here begins with it
            progress.stop()
        best.consider(number, validation, network)
        ends = number == spec.epochs or best.gives_up(number)
        on_epoch(
            Epoch(
                number=number,
                step=progress.step,
                steps=steps,
                rows_per_second=rate,
                train_loss=progress.loss_sum / rows,
                validation=validation,
                eta_seconds=None if ends else pace.eta_seconds(number * rows),
            )
        )
        reports.told()
        progress.ended_epoch()
        if ends:
            break
    best.restore(network)
    network.eval()
    return Trained(
        network=network,
        epochs=number,
        step=progress.step,
        steps=steps,
        best_epoch=best.number,
        best_figure=best.figure,
    )


def _forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Does what an optimiser's `zero_grad` does, without measuring itself for a profiler."""
    # Which takes 16 µs of a small network's 250.
    for parameter in parameters:
        parameter.grad = None


def _is_validated(spec: TrainingJobSpec, step: int) -> bool:
    return spec.validate_every_steps > 0 and step % spec.validate_every_steps == 0


def _validate(
    network: Network,
    data: TrainingData,
    when: str,
    replicas: Replicas,
    stop: StopRequest | None = None,
) -> dict[str, float]:
    """Returns the figures of the validation rows; leaves the network in evaluation mode.

    Raises:
        NanLoss: One of them is infinite or not a number.
        StopAsked: A stop was asked for meanwhile, and `stop` says that it may interrupt.
    """
    predict = torch_predict(network)

    def figures_of_first() -> dict[str, float] | None:
        try:
            interruptible = stop.interrupting(predict) if stop else predict
            return evaluate(interruptible, data.validation, data.task)
        except StopAsked:
            return None

    figures = replicas.first_says(figures_of_first)
    if figures is None:
        raise StopAsked
    for name, figure in figures.items():
        if not math.isfinite(figure):
            raise NanLoss(f"the validation {name} became {figure} {when}")
    return figures
