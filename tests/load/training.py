"""What the training loop adds to a step of a bare PyTorch loop.

    python -m tests.load.training

The bare loop is what one writes by hand: the rows in a random order, forward, PyTorch's own loss,
backward, step; it checks nothing, counts nothing and keeps nothing. It has the same architecture,
rows, batches and threads, and `torch.optim.Adam` as it comes. Ours asks Adam for its fused kernel,
which hides what the rest of the loop costs; so there is a second bare loop, with the optimiser that
ours has. What ours saves elsewhere (it picks rows and clears gradients faster) counts for it beside
both. Ours trains an epoch, then each of the bare loops trains one, and so on in one process, so all
meet the same noise. Ours is charged with all that it does between two epochs; of evaluation as
little is asked as can be.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modelrail_trainer import spec
from modelrail_trainer.worker.learning.initialization import threads_for
from modelrail_trainer.worker.learning.loop import Epoch, fit
from modelrail_trainer.worker.part import Part
from modelrail_trainer.worker.training_data import TrainingData
from modelrail_trainer.zoo import ZooModel
from tests.load.models import FOLDER
from tests.load.table import Table, publish, quartiles

_CLASSES = 10
_LEARNING_RATE = 1e-4
_HELD_OUT_ROWS = 4


@dataclass(frozen=True, slots=True)
class Workload:
    """A network and the rows that it learns from.

    Attributes:
        model: The architecture.
        row_shape: Of one row.
        batch_size: Rows of a step.
        steps: Of an epoch.
        tokens: Size of the vocabulary; 0 for numbers.
    """

    model: ZooModel
    row_shape: tuple[int, ...]
    batch_size: int
    steps: int
    tokens: int = 0


WORKLOADS = {
    "mlp, small": Workload(spec.MlpModel(hidden_units=(64,)), (32,), 32, 1000),
    "mlp, large": Workload(spec.MlpModel(hidden_units=(1024, 1024)), (512,), 256, 30),
    "cnn of the digits": Workload(
        spec.CnnModel(channels=(16, 32), hidden_units=64, dropout=0.2), (8, 8), 32, 200
    ),
    "resnet": Workload(spec.ResNetModel(channels=(16, 32), blocks_per_stage=1), (28, 28), 32, 20),
    "transformer": Workload(
        spec.TransformerModel(width=64, layers=2, heads=4, feed_forward=128, dropout=0.1),
        (64,),
        32,
        20,
        tokens=256,
    ),
}


@dataclass(slots=True)
class Times:
    """Seconds of a step, epoch by epoch.

    Attributes:
        wall: By the clock.
        processor: Of all threads of the process: what holds on a busy machine.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


class _Watch:
    """Charges the time since it was last looked at."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def charge(self, times: Times, steps: int) -> None:
        times.wall.append((time.perf_counter() - self._wall) / steps)
        times.processor.append((time.process_time() - self._processor) / steps)


def rows_of(workload: Workload) -> TrainingData:
    """Returns random rows, which take as long to learn from as any others."""
    generator = np.random.default_rng(0)

    def part(rows: int) -> Part:
        targets = generator.integers(0, _CLASSES, rows)
        shape = (rows, *workload.row_shape)
        if workload.tokens:
            inputs: Any = generator.integers(1, workload.tokens, shape)
        else:
            inputs = generator.normal(size=shape).astype(np.float32)
        return Part(inputs, targets)

    return TrainingData(
        name="random rows",
        sha256="0" * 64,
        task=spec.Task.CLASSIFICATION,
        input_name="x",
        input_meaning="nothing",
        labels=tuple(map(str, range(_CLASSES))),
        outputs=_CLASSES,
        train=part(workload.batch_size * workload.steps),
        validation=part(_HELD_OUT_ROWS),
        test=part(_HELD_OUT_ROWS),
        tokens=workload.tokens,
    )


@dataclass(slots=True)
class Measured:
    """What was measured of one network.

    Attributes:
        threads: That a step has.
        ours: Our loop.
        bare: A bare loop with PyTorch's optimiser as it comes.
        bare_with_ours: A bare loop with the optimiser that ours has.
    """

    threads: int
    ours: Times = field(default_factory=Times)
    bare: Times = field(default_factory=Times)
    bare_with_ours: Times = field(default_factory=Times)


def bare_loop(
    workload: Workload,
    data: TrainingData,
    optimiser_of: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
) -> Callable[[], None]:
    """Returns what trains one epoch by hand."""
    inputs = torch.from_numpy(data.train.inputs)  # [N, *row_shape]
    targets = torch.from_numpy(data.train.targets)  # [N]
    network = workload.model.build(workload.row_shape, _CLASSES, workload.tokens)
    optimiser = optimiser_of(network.parameters())

    def epoch() -> None:
        network.train()
        for chosen in torch.split(torch.randperm(len(inputs)), workload.batch_size):  # [B]
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(inputs[chosen]), targets[chosen])
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            optimiser.step()

    return epoch


def measure(workload: Workload, epochs: int) -> Measured:
    """Trains with all loops in turn."""
    data = rows_of(workload)
    optimizer = spec.Adam(learning_rate=_LEARNING_RATE)
    wanted = spec.with_defaults(
        spec.TrainingJobSpec(
            dataset=None,
            model=workload.model,
            loss=spec.CrossEntropy(),
            optimizer=optimizer,
            epochs=epochs + 1,  # the first is for warming up
            batch_size=workload.batch_size,
            publication=spec.Publication(model="measured"),
        )
    )
    found, watch = Measured(threads_for(wanted, data.facts)), _Watch()
    bare_loops = (
        (bare_loop(workload, data, partial(torch.optim.Adam, lr=_LEARNING_RATE)), found.bare),
        (bare_loop(workload, data, optimizer.build), found.bare_with_ours),
    )

    def after(epoch: Epoch) -> None:
        if epoch.number > 1:
            watch.charge(found.ours, workload.steps)
        torch.use_deterministic_algorithms(False)
        for bare_epoch, times in bare_loops:
            watch.restart()
            bare_epoch()
            if epoch.number > 1:  # their first epochs are for warming up as well
                watch.charge(times, workload.steps)
        torch.use_deterministic_algorithms(True)
        watch.restart()

    fit(wanted, data, after)
    return found


def tables(found: Mapping[str, Measured]) -> list[Table]:
    """Returns the times of a step, and what ours adds to them."""
    steps = Table(
        "CPU time of a training step in µs, and ours over the bare loops' (aim ≤ 1.03)",
        (
            *("network", "threads", "bare", "ours", "ratio", "ratio by the clock"),
            "ratio with the same optimiser",
        ),
    )
    for name, one in found.items():
        ours, bare, with_ours = one.ours, one.bare, one.bare_with_ours
        steps.add(
            name,
            one.threads,
            f"{statistics.median(bare.processor) * 1e6:.0f}",
            f"{statistics.median(ours.processor) * 1e6:.0f}",
            quartiles(ratios(ours.processor, bare.processor), 3),
            quartiles(ratios(ours.wall, bare.wall), 3),
            quartiles(ratios(ours.processor, with_ours.processor), 3),
        )
    return [steps]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Returns the ratio within each pair of epochs."""
    return [one / other for one, other in zip(above, below, strict=True)]


def main() -> None:
    """Measures the overhead."""
    parser = argparse.ArgumentParser(description="Our training loop beside a bare one.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="not used: nothing is kept")
    parser.add_argument("--networks", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--epochs", type=int, default=30, help="pairs of epochs to compare")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    workloads = {name: WORKLOADS[name] for name in options.networks}
    if options.quick:
        options.epochs = 2
        workloads = {name: replace(one, steps=2) for name, one in workloads.items()}
    found = {name: measure(one, options.epochs) for name, one in workloads.items()}
    figures = {name: asdict(one) for name, one in found.items()}
    publish(tables(found), figures, options.json)


if __name__ == "__main__":
    main()
