"""What a job waits for that is not training: its start, its checkpoints, its export and gate.

    python -m tests.load.checkpoints

Checkpoints are those of perceptrons that Adam trains, and hold the weights, the best epoch's
weights and two moments: 16 bytes for each weight. Beside each a file of the same size is written
and synced by hand, in turn: what the disk itself takes. The start is that of a real job of a real
service, seen from outside: by the lines of its journal and a checkpoint after its first step.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from modelrail_trainer import spec
from modelrail_trainer.handover.journal import JOURNAL_NAME
from modelrail_trainer.worker.export import acceptance
from modelrail_trainer.worker.export.exporter import export, exported_module, signature_of
from modelrail_trainer.worker.learning.checkpoint import Checkpoints, Position, training_state
from modelrail_trainer.worker.learning.evaluate import evaluate, torch_predict
from modelrail_trainer.worker.network import Network
from modelrail_trainer.worker.part import Part
from modelrail_trainer.worker.training_data import TrainingData
from tests.load.models import FOLDER
from tests.load.table import Table, megabytes, publish, spread
from tests.load.trainer import digits, trainer, when

_FEATURES = 64
_CLASSES = 10
_WIDTHS = (64, 1024, 3072, 5120)
_START_STEPS = ("queue", "process and Python", "worker and its checks", "torch and data", "a step")


def network_of(width: int) -> Network:
    """Returns a perceptron with two hidden layers of a width."""
    body = spec.MlpModel(hidden_units=(width, width)).build((_FEATURES,), _CLASSES)
    return Network(torch.nn.Sequential(), body).eval()


def weights(network: Network) -> int:
    """Returns how many weights a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def took(action: Callable[[], object]) -> float:
    """Returns the seconds that something takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def saves(width: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Writes checkpoints, and as many bytes by hand."""
    network = network_of(width)
    optimiser = spec.Adam(learning_rate=1e-3).build(network.parameters())
    network(torch.randn(8, _FEATURES)).sum().backward()
    optimiser.step()
    best = {name: value.clone() for name, value in network.state_dict().items()}
    order = torch.Generator().manual_seed(0).get_state()
    checkpoints = Checkpoints(folder / f"checkpoints-{width}", {}, every_steps=1)

    def save(step: int) -> None:
        position = Position(epoch=1, rows=0, step=step, loss_sum=0.0, best_epoch=1, best_figure=0.0)
        checkpoints.save(position, training_state(network, optimiser, order, best))

    def by_hand(content: bytes) -> None:
        with (folder / "by-hand").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    save(1)
    (first,) = (folder / f"checkpoints-{width}").iterdir()
    content = first.read_bytes()
    found: dict[str, Any] = {"weights": weights(network), "bytes": len(content)}
    found |= {"stalls": [], "by_hand": []}
    for step in range(2, rounds + 2):
        found["stalls"].append(took(lambda step=step: save(step)))  # type: ignore[misc]
        found["by_hand"].append(took(lambda: by_hand(content)))
    return found


def proofs(width: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Exports networks and takes them through the gate."""
    network = network_of(width)
    rows = np.random.default_rng(0).normal(size=(300, _FEATURES)).astype(np.float32)
    part = Part(rows, np.arange(300) % _CLASSES)
    data = TrainingData(
        name="random rows",
        sha256="0" * 64,
        task=spec.Task.CLASSIFICATION,
        input_name="x",
        input_meaning="nothing",
        labels=tuple(map(str, range(_CLASSES))),
        outputs=_CLASSES,
        train=part,
        validation=part,
        test=part,
    )
    path = folder / "model.onnx"
    figures = {
        name: evaluate(torch_predict(network), part, data.task)
        for name in ("train", "validation", "test")
    }
    found: dict[str, Any] = {"weights": weights(network), "export": [], "gate": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        signature, module = signature_of(data), exported_module(network, data.task)
        onnx.save(export(module, signature, data.task), path)
        exported = time.perf_counter()
        acceptance.check(path, module, signature, data, figures)
        found["export"].append(exported - begun)
        found["gate"].append(time.perf_counter() - exported)
    return found | {"bytes": path.stat().st_size}


async def start(folder: Path) -> list[float]:
    """Returns the seconds of each part of a job's way to its first step."""
    async with trainer(folder) as host:
        begun = time.perf_counter()
        job = await host.client.create_job(digits(1, checkpoint_every_steps=1))
        directory = host.directory(job)

        def lines(count: int) -> Callable[[], bool]:
            journal = directory / JOURNAL_NAME
            return lambda: journal.exists() and journal.read_bytes().count(b"\n") >= count

        def trains() -> bool:
            journal = directory / JOURNAL_NAME
            return b"running" in journal.read_bytes().lower()

        moments = [
            begun,
            await when(directory.exists),
            await when(lines(1)),  # the layers around the process, told before the worker runs
            await when(lines(2)),  # PREPARING
            await when(trains),
            await when(lambda: any(directory.glob("checkpoints/*.safetensors"))),
        ]
        await host.client.cancel_job(job.name)
    return [after - before for before, after in pairwise(moments)]


def imports() -> float:
    """Returns how long a process lives that imports what a job needs before its first step."""
    command = [sys.executable, "-c", "import modelrail_trainer.worker.job, os; os._exit(0)"]
    return took(lambda: subprocess.run(command, check=True))


def tables(figures: dict[str, Any]) -> list[Table]:
    """Returns a table for each matter."""
    saved = Table(
        "a checkpoint: how long training stands still",
        ("weights", "file MB", "stall ms", "same bytes by hand ms", "ratio"),
    )
    for one in figures["saves"]:
        ratio = [s / h for s, h in zip(one["stalls"], one["by_hand"], strict=True)]
        saved.add(
            f"{one['weights']:,}",
            megabytes(one["bytes"]),
            spread([seconds * 1e3 for seconds in one["stalls"]], 1),
            spread([seconds * 1e3 for seconds in one["by_hand"]], 1),
            spread(ratio),
        )
    proven = Table("export and gate", ("weights", "ONNX MB", "export s", "gate s"))
    for one in figures["proofs"]:
        proven.add(
            f"{one['weights']:,}",
            megabytes(one["bytes"]),
            spread(one["export"]),
            spread(one["gate"]),
        )
    started = Table("from submitting to the first step (aim < 5 s)", ("part", "seconds"))
    for number, name in enumerate(_START_STEPS):
        started.add(name, spread([one[number] for one in figures["starts"]]))
    started.add("all", spread([sum(one) for one in figures["starts"]]))
    started.add("a process that only imports the worker's job", spread(figures["imports"]))
    return [saved, proven, started]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures everything and returns every single figure."""
    figures: dict[str, Any] = {"saves": [], "proofs": [], "starts": [], "imports": []}
    for number in range(options.rounds):
        figures["starts"].append(asyncio.run(start(folder / f"trainer-{number}")))
        figures["imports"].append(imports())
    for width in options.widths:
        figures["saves"].append(saves(width, options.rounds, folder))
        figures["proofs"].append(proofs(width, options.rounds, folder))
    return figures


def main() -> None:
    """Measures what is not training."""
    parser = argparse.ArgumentParser(description="Start, checkpoints, export and gate of a job.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--widths", type=int, nargs="+", default=_WIDTHS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.widths = 1, [64]
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as work:
        figures = measure(options, Path(work))
    publish(tables(figures), figures, options.json)


if __name__ == "__main__":
    main()
