"""ONNX Runtime alone: what `InferenceSession.run` does with the machine to itself.

python -m tests.load.raw mlp --seconds 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelrail_inference.model.provider import Provider
from modelrail_inference.runtime.provider import ONNX_NAMES, load_libraries
from tests.load.models import FOLDER, MODELS, BenchmarkModel, Inputs

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
PROVIDERS = (Provider.CPU.value, Provider.CUDA.value)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the processors are divided.

    Attributes:
        sessions: Sessions that run at a time, each in a thread of its own.
        threads: Threads of each of them.
    """

    sessions: int
    threads: int

    def __str__(self) -> str:
        return f"{self.sessions}x{self.threads}"


@dataclass(frozen=True, slots=True)
class RawFigures:
    """What one layout did with one batch size.

    Attributes:
        layout: Sessions, and threads of each: 1x2.
        batch_size: Items in a run.
        items_per_second: Over all sessions.
        cpu_seconds_per_item: Processor time of the process for an item.
        run_seconds: Median time of a run.
    """

    layout: str
    batch_size: int
    items_per_second: float
    cpu_seconds_per_item: float
    run_seconds: float


def layouts(provider: str) -> list[Layout]:
    """Returns one session on all processors, and a session for each processor.

    On a GPU they are one session that nobody shares, and two that share the device.
    """
    if provider == Provider.CUDA.value:
        return [Layout(1, 1), Layout(2, 1)]
    cpus = len(os.sched_getaffinity(0))
    return [Layout(1, cpus), Layout(cpus, 1)] if cpus > 1 else [Layout(1, 1)]


def measure(
    model: BenchmarkModel, path: Path, provider: str, *, batch_sizes: Sequence[int], seconds: float
) -> list[RawFigures]:
    """Runs the model in this process, each batch size with each layout for so many seconds."""
    figures = []
    for layout in layouts(provider):
        sessions = [_session(path, provider, layout.threads) for _ in range(layout.sessions)]
        for batch_size in batch_sizes:
            inputs = model.inputs(batch_size, np.random.default_rng(0))
            for session in sessions:
                session.run(None, inputs)
            figures.append(_measure(layout, sessions, batch_size, inputs, seconds))
    return figures


def _session(path: Path, provider: str, threads: int) -> Any:
    import onnxruntime

    name = ONNX_NAMES[Provider(provider)]
    if Provider(provider) is Provider.CUDA:
        load_libraries()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=[name], enable_fallback=0)
    if name not in session.get_providers():
        raise SystemExit(f"--provider {provider}: {name} does not load on this machine")
    return session


def _measure(
    layout: Layout, sessions: Sequence[Any], batch_size: int, inputs: Inputs, seconds: float
) -> RawFigures:
    durations: list[float] = []
    end = time.perf_counter() + seconds

    def run(session: Any) -> None:
        while (before := time.perf_counter()) < end:
            session.run(None, inputs)
            durations.append(time.perf_counter() - before)

    threads = [threading.Thread(target=run, args=(session,)) for session in sessions]
    cpu, start = time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    items = len(durations) * batch_size
    return RawFigures(
        layout=str(layout),
        batch_size=batch_size,
        items_per_second=items / (time.perf_counter() - start),
        cpu_seconds_per_item=(time.process_time() - cpu) / items,
        run_seconds=float(np.median(durations)),
    )


def measure_apart(
    name: str, folder: Path, provider: str, *, batch_sizes: Sequence[int], seconds: float
) -> list[RawFigures]:
    """Measures in a process of its own, whose processor time nothing else adds to."""
    result = subprocess.run(
        [
            sys.executable, "-m", "tests.load.raw", name, "--folder", str(folder),
            "--provider", provider, "--seconds", str(seconds), "--json",
            "--batch-sizes", *map(str, batch_sizes),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if result.returncode:
        raise RuntimeError(f"raw measurement of {name} failed: {result.stderr[-2000:]}")
    return [RawFigures(**figures) for figures in json.loads(result.stdout)]


def best(figures: Sequence[RawFigures]) -> RawFigures:
    """Returns what had the most items in a second."""
    return max(figures, key=lambda one: one.items_per_second)


def main() -> None:
    """Measures one model."""
    parser = argparse.ArgumentParser(description="ONNX Runtime alone.")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--provider", choices=PROVIDERS, default=PROVIDERS[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each batch size and layout")
    parser.add_argument("--json", action="store_true", help="write JSON in place of a table")
    options = parser.parse_args()
    model = MODELS[options.model]
    figures = measure(
        model,
        model.file(options.folder),
        options.provider,
        batch_sizes=options.batch_sizes,
        seconds=options.seconds,
    )
    if options.json:
        print(json.dumps([asdict(one) for one in figures]))
        return
    from tests.load.table import Table, milliseconds

    table = Table(
        f"{model.name}: InferenceSession.run",
        ("layout", "batch", "items/s", "CPU ms/item", "run ms"),
    )
    for one in figures:
        table.add(
            one.layout,
            one.batch_size,
            f"{one.items_per_second:.0f}",
            milliseconds(one.cpu_seconds_per_item),
            milliseconds(one.run_seconds),
        )
    print(table)


if __name__ == "__main__":
    main()
