"""Two processes that train one network together, beside one process on the same processors.

    python -m tests.load.replicas

Real jobs of a real service, one after the other and in turn: with one process, which computes on as
many threads as its steps are worth, and with two, each on half of every batch and half of the
processors. Both make the same steps. The rate is the trainer's own, of every epoch but the first;
what torchrun takes to start is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelrail.client.trainer import RunPolicy
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import JOURNAL_NAME, MetricsEvent, read_events
from tests.load.models import FOLDER
from tests.load.table import Table, publish, quartiles
from tests.load.trainer import TrainerHost, digits, trainer, when


@dataclass(frozen=True, slots=True)
class Workload:
    """A network that learns the digits, 1,258 training rows of 8 by 8 pixels.

    Attributes:
        model: The architecture.
        batch_size: Rows of a step, of both processes together.
    """

    model: pb.ModelSpec
    batch_size: int


WORKLOADS = {
    "cnn, steps of 2 ms": Workload(
        pb.ModelSpec(cnn=pb.CnnModel(channels=[16, 32], hidden_units=64)), 32
    ),
    "mlp, 4.4 million weights": Workload(
        pb.ModelSpec(mlp=pb.MlpModel(hidden_units=[2048, 2048])), 256
    ),
    "resnet": Workload(
        pb.ModelSpec(resnet=pb.ResNetModel(channels=[32, 64], blocks_per_stage=2)), 128
    ),
}


async def rates(host: TrainerHost, workload: Workload, processes: int, epochs: int) -> list[float]:
    """Trains once and returns the training rows a second of every epoch but the first."""
    wanted = digits(epochs)
    wanted.model.CopyFrom(workload.model)
    wanted.batch_size = workload.batch_size
    job = await host.client.create_job(wanted, policy=RunPolicy(processes=processes))
    journal = host.directory(job) / JOURNAL_NAME
    found: list[float] = []

    def trained() -> bool:
        events = read_events(journal, 0)[0]
        found[:] = [
            event.rows_per_second
            for event in events
            if isinstance(event, MetricsEvent) and event.rows_per_second > 0
        ]
        return len(found) >= epochs

    await when(trained)
    await host.client.cancel_job(job.name)
    async for _ in host.client.watch_job(job.name):
        pass
    return found[1:]


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the rates by network and number of processes, round by round."""
    figures: dict[str, Any] = {name: {1: [], 2: []} for name in options.networks}
    async with trainer(folder) as host:
        for _ in range(options.rounds):
            for name in options.networks:
                for processes, found in figures[name].items():
                    found.append(await rates(host, WORKLOADS[name], processes, options.epochs))
    return figures


def tables(figures: dict[str, Any]) -> list[Table]:
    """Returns the rates and their ratio."""
    table = Table(
        "rows/s of a job on the processors of this machine",
        ("network", "one process", "two processes", "two / one"),
    )
    for name, found in figures.items():
        one, two = (
            [rate for rates_of_round in found[count] for rate in rates_of_round] for count in (1, 2)
        )
        ratios = [t / o for o, t in zip(one, two, strict=True)]
        table.add(name, quartiles(one, 0), quartiles(two, 0), quartiles(ratios))
    return [table]


def main() -> None:
    """Measures jobs of one and of two processes."""
    parser = argparse.ArgumentParser(description="Two processes that train together, beside one.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--networks", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.epochs, options.networks = 1, 2, options.networks[:1]
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as work:
        figures = asyncio.run(measure(options, Path(work)))
    publish(tables(figures), figures, options.json)


if __name__ == "__main__":
    main()
