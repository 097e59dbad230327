"""How fast a table's rows come from the files and from the disk, and how much memory that takes.

    python -m tests.load.pipeline

A Parquet file of 2 GB is generated once and kept in the folder. A process of its own then does what
a job's worker does with it: it reads the file twice (to fit the encodings, and to encode), and
draws batches in an epoch's order from the encoded rows on the disk. Beside that stands how many
rows a small perceptron consumes that lie in memory. Resident memory is the kernel's own peak of
each part; the pages of mapped files among it can be taken back at any time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from modelrail_trainer import spec
from modelrail_trainer.worker.data import load
from modelrail_trainer.worker.learning.initialization import prepare_torch
from modelrail_trainer.worker.learning.loop import Epoch, fit
from modelrail_trainer.worker.learning.order import batches as batches_of
from modelrail_trainer.worker.part import Part
from modelrail_trainer.worker.training_data import TrainingData
from tests.load.models import FOLDER
from tests.load.table import Table, megabytes, publish

_COLUMNS = 20
_ROW_BYTES = 8 * _COLUMNS + 1
_GROUP_ROWS = 100_000
_BATCH_SIZE = 256
_IN_MEMORY_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the work.

    Attributes:
        name: What was done.
        rows_per_second: Rows that came, or were consumed.
        peak_bytes: Most resident memory while it was done.
        own_bytes: Resident memory at its end without that of mapped files.
    """

    name: str
    rows_per_second: float
    peak_bytes: int
    own_bytes: int


def write_table(path: Path, size_bytes: int) -> None:
    """Writes random numbers, which do not compress, and a class for each row."""
    generator = np.random.default_rng(0)
    names = [f"x{number}" for number in range(_COLUMNS)]
    kinds = [(name, pa.float64()) for name in names]
    partial = path.with_suffix(".partial")
    with pa.parquet.ParquetWriter(
        partial,
        pa.schema([*kinds, ("label", pa.int8())]),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    ) as writer:
        for _ in range(-(-size_bytes // (_ROW_BYTES * _GROUP_ROWS))):
            rows = generator.random((_COLUMNS, _GROUP_ROWS))
            label = (rows[0] > rows[1]).astype(np.int8)
            writer.write_table(pa.table({**dict(zip(names, rows, strict=True)), "label": label}))
    partial.replace(path)


def job(path: Path) -> spec.TrainingJobSpec:
    """Returns a job that learns from the table."""
    return spec.with_defaults(
        spec.TrainingJobSpec(
            dataset=spec.TableDataset(paths=(str(path),), target="label"),
            model=spec.MlpModel(hidden_units=(64,)),
            loss=spec.CrossEntropy(),
            optimizer=spec.Adam(learning_rate=1e-3),
            epochs=3,
            batch_size=_BATCH_SIZE,
            publication=spec.Publication(model="measured"),
        )
    )


class _Meter:
    """Times the stages of the process that it is in."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def measure(self, name: str, work: Callable[[], float]) -> None:
        """Does a stage, which returns its rows a second."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        rate = work()
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        sizes = {name: int(status[name].split()[0]) << 10 for name in ("VmHWM", "RssAnon")}
        self.stages.append(Stage(name, rate, sizes["VmHWM"], sizes["RssAnon"]))


def deliver(path: Path, folder: Path, seconds: float) -> list[Stage]:
    """Does what a worker does with the table; meant for a process of its own."""
    wanted, meter = job(path), _Meter()
    prepare_torch(0, 1)
    found: list[TrainingData] = []

    def two_passes() -> float:
        begun = time.perf_counter()
        found.append(load(wanted, folder))
        rows = sum(len(part) for part in (found[0].train, found[0].validation, found[0].test))
        return rows / (time.perf_counter() - begun)

    def batches() -> float:
        data = found[0]
        rows, begun = 0, time.perf_counter()
        for some, chosen in batches_of(data.train, _BATCH_SIZE, torch.Generator()):
            some.at(chosen)
            rows += len(chosen)
            if time.perf_counter() - begun > seconds:
                break
        return rows / (time.perf_counter() - begun)

    def consumption() -> float:
        data = found[0]
        few = Part(
            np.array(data.train.inputs[:_IN_MEMORY_ROWS]),
            np.array(data.train.targets[:_IN_MEMORY_ROWS], np.int64),
        )
        small = replace(data, train=few, validation=few, test=few, raw=None)
        epochs: list[Epoch] = []
        fit(wanted, small, epochs.append)
        return max(epoch.rows_per_second for epoch in epochs)

    meter.measure("two passes over the file, once a job", two_passes)
    meter.measure("batches from the disk, every epoch", batches)
    meter.measure("the perceptron consumes", consumption)
    return meter.stages


def tables(stages: list[Stage], size_bytes: int) -> list[Table]:
    """Returns what was measured and how it compares."""
    table = Table(
        f"a Parquet file of {megabytes(size_bytes)} MB, {_COLUMNS} columns of numbers",
        ("", "rows/s", "peak resident MB", "without mapped files MB"),
    )
    for stage in stages:
        table.add(
            stage.name,
            f"{stage.rows_per_second:,.0f}",
            megabytes(stage.peak_bytes),
            megabytes(stage.own_bytes),
        )
    passes, batches, consumed = (stage.rows_per_second for stage in stages)
    compared = Table("comparisons", ("ratio", "value", "aim"))
    compared.add(
        "batches from the disk / what the perceptron consumes", f"{batches / consumed:.1f}", "≥ 5"
    )
    # Once a job, not in each epoch.
    compared.add("two passes / what the perceptron consumes", f"{passes / consumed:.1f}", "")
    return [table, compared]


def main() -> None:
    """Measures the pipeline."""
    parser = argparse.ArgumentParser(description="The path of a table's rows to the network.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the file")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time of batches")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if options.quick:
        options.megabytes, options.seconds = 16, 0.5
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"random-{options.megabytes}.parquet"
    if not path.exists():
        write_table(path, options.megabytes * 1_000_000)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as work:
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawned) as process:
            stages = process.submit(deliver, path, Path(work) / "data", options.seconds).result()
    size_bytes = path.stat().st_size
    figures = {"bytes": size_bytes, "stages": [asdict(stage) for stage in stages]}
    publish(tables(stages, size_bytes), figures, options.json)


if __name__ == "__main__":
    main()
