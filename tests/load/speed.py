"""What a caller waits for: ONNX Runtime alone, the bare transport, and the server, side by side.

    python -m tests.load.speed mlp
    python -m tests.load.speed resnet18 minilm

All hosts run on this machine and are measured in turn, round after round, so that what else the
machine does meets all of them. Printed are medians over the rounds with the least and the greatest;
ratios are computed within a round. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import statistics
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tests.load import echo, handler
from tests.load.generator import Generator, LoadFigures, Target, is_available, send
from tests.load.models import FOLDER, MODELS, BenchmarkModel, ModelMissing
from tests.load.process import inference_command, running
from tests.load.ratios import BATCHED, ECHO, GRAPHS, HANDLER, SINGLE, Cell, Rounds, ratios
from tests.load.raw import BATCH_SIZES, PROVIDERS, RawFigures, best, measure_apart
from tests.load.repository import add_model
from tests.load.request import encode
from tests.load.table import Table, milliseconds, publish, spread

CONCURRENCIES = (1, 8, 32)


async def hosts(
    model: BenchmarkModel,
    file: Path,
    work: Path,
    stack: AsyncExitStack,
    *,
    provider: str,
    flags: Sequence[str],
) -> dict[str, Target]:
    """Starts the server with batching, without it, and an echo of its bytes; they then wait.

    On a GPU there is one more server, which replays recorded runs. On the CPU there is a handler by
    hand: the tiny model runs on its event loop, which a larger one would hold.

    Raises:
        HostFailed: One of them does not start.
    """
    body = encode(model.name, model.inputs(1, np.random.default_rng(0)))
    targets = {}
    servers = [BATCHED, SINGLE] if provider == "cpu" else [BATCHED, SINGLE, GRAPHS]
    for name in servers:
        repository = work / name.replace(" ", "-")
        add_model(repository, model.name, file, batching=name != SINGLE, graphs=name == GRAPHS)
        command = inference_command(
            "--model-repository", str(repository), "--provider", provider, *flags
        )
        host = await stack.enter_async_context(running(command))
        targets[name] = Target(host, model.name, body, model.ranges)
    replies = work / "replies"
    replies.mkdir()
    await echo.record(targets[BATCHED].host.address, model.name, body, replies)
    bare = await stack.enter_async_context(running(echo.command(replies), wait_ready=False))
    targets[ECHO] = Target(bare, model.name, body, model.ranges)
    if provider == "cpu":
        sessions = 0 if model.name == "mlp" else len(os.sched_getaffinity(0))
        written = handler.command(replies, file, sessions=sessions)
        by_hand = await stack.enter_async_context(running(written, wait_ready=False))
        targets[HANDLER] = Target(by_hand, model.name, body, model.ranges)
    return targets


def cells(generator: Generator, concurrencies: Sequence[int], hosts: Collection[str]) -> list[Cell]:
    """Returns what is measured in a round. Only the server has streams."""
    streaming = [False, True] if generator is Generator.MODELRAIL else [False]
    return [
        Cell(host, streams, concurrency)
        for concurrency in concurrencies
        for streams in streaming
        for host in hosts
        if not (host in (ECHO, HANDLER) and streams)
    ]


async def measure(
    model: BenchmarkModel, options: argparse.Namespace, say: Callable[[str], None]
) -> Rounds:
    """Measures one model on all hosts, round after round.

    Raises:
        ModelMissing: The model cannot be made here.
        HostFailed: A host does not start.
        LoadFailed: A request failed.
    """
    file = model.file(options.folder)
    sweep = measure_apart(
        model.name,
        options.folder,
        options.provider,
        batch_sizes=options.batch_sizes,
        seconds=options.seconds,
    )
    rounds = Rounds(sweep=sweep)
    fastest = best(sweep)
    say(f"{model.name}: raw is fastest with {fastest.layout} and batches of {fastest.batch_size}")
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as work:
        async with AsyncExitStack() as stack:
            flags = shlex.split(options.server_flags)
            targets = await hosts(
                model, file, Path(work), stack, provider=options.provider, flags=flags
            )
            order = cells(options.generator, options.concurrency, targets)
            for number in range(options.rounds):
                rounds.raw.append(_raw_again(model.name, fastest, options))
                # Each round starts elsewhere: no host always has the machine after another.
                start = number % len(order)
                for cell in [*order[start:], *order[:start]]:
                    figures = await send(
                        options.generator,
                        targets[cell.host],
                        concurrency=cell.concurrency,
                        streaming=cell.streaming,
                        seconds=options.seconds,
                    )
                    rounds.served[cell].append(figures)
                    say(f"{model.name}: round {number + 1}: {cell}: {figures}")
    return rounds


def _raw_again(name: str, fastest: RawFigures, options: argparse.Namespace) -> RawFigures:
    (again,) = [
        figures
        for figures in measure_apart(
            name,
            options.folder,
            options.provider,
            batch_sizes=[fastest.batch_size],
            seconds=options.seconds,
        )
        if figures.layout == fastest.layout
    ]
    return again


def tables(
    model: BenchmarkModel, rounds: Rounds, generator: Generator, *, on_gpu: bool
) -> list[Table]:
    """Returns the tables of one model."""
    raw = Table(
        f"{model.name}: InferenceSession.run alone",
        ("layout", "batch", "items/s", "CPU ms/item", "run ms"),
    )
    for one in rounds.sweep:
        raw.add(
            one.layout,
            one.batch_size,
            f"{one.items_per_second:.0f}",
            milliseconds(one.cpu_seconds_per_item),
            milliseconds(one.run_seconds),
        )
    hosts = Table(
        f"{model.name}: hosts under a closed loop by {generator}",
        ("host", "calls", "in flight", "requests/s", "p50 ms", "p99 ms", "CPU ms/request", "batch"),
    )
    hosts.add(
        f"raw {rounds.raw[0].layout}, batch {rounds.raw[0].batch_size}", "-", "-",
        spread([one.items_per_second for one in rounds.raw], 0), "-", "-",
        spread([one.cpu_seconds_per_item * 1e3 for one in rounds.raw], 3),
        rounds.raw[0].batch_size,
    )  # fmt: skip
    for cell, figures in rounds.served.items():
        hosts.add(
            cell.host,
            "streams" if cell.streaming else "unary",
            cell.concurrency,
            spread([one.requests_per_second for one in figures], 0) + _limit(figures),
            spread([one.p50_seconds * 1e3 for one in figures]),
            spread([one.p99_seconds * 1e3 for one in figures]),
            spread([one.cpu_seconds_per_request * 1e3 for one in figures], 3),
            _batch(figures),
        )
    compared = Table(f"{model.name}: ratios", ("ratio", "median (least to greatest)", "aim"))
    for ratio in ratios(model.name, rounds, on_gpu=on_gpu):
        compared.add(ratio.name, spread(ratio.values, ratio.digits), ratio.aim)
    return [raw, hosts, compared]


def _limit(figures: Sequence[LoadFigures]) -> str:
    """Marks rates at which the load generator itself was the limit in most rounds."""
    return " *" if sum(one.client_limited for one in figures) * 2 > len(figures) else ""


def _batch(figures: Sequence[LoadFigures]) -> str:
    sizes = [one.mean_batch_size for one in figures if one.mean_batch_size is not None]
    return f"{statistics.median(sizes):.1f}" if sizes else "-"


def main() -> None:
    """Measures the models that are named."""
    parser = argparse.ArgumentParser(
        description="ONNX Runtime alone, the bare transport and the server, side by side."
    )
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--provider", choices=PROVIDERS, default=PROVIDERS[0])
    parser.add_argument("--generator", type=Generator, choices=Generator, default="modelrail")
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCIES)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES, help="of raw")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure of a round")
    parser.add_argument("--server-flags", default="", help="more flags for the server, as one text")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    parser.add_argument("--verbose", action="store_true", help="print figures as they come")
    options = parser.parse_args()
    if not is_available(options.generator):
        parser.error("--generator h2load: not found; it is in Debian's package nghttp2-client")
    if options.quick:
        options.rounds, options.seconds = 1, 0.2
        options.batch_sizes, options.concurrency = [1, 8], [1, 8]
    found: list[Table] = []
    raw: dict[str, Any] = {}
    for name in options.models:
        try:
            rounds = asyncio.run(
                measure(MODELS[name], options, print if options.verbose else lambda text: None)
            )
        except ModelMissing as error:
            print(f"skipped: {error}")
            continue
        on_gpu = options.provider != "cpu"
        found += tables(MODELS[name], rounds, options.generator, on_gpu=on_gpu)
        raw[name] = rounds.to_json()
    publish(found, raw, options.json)


if __name__ == "__main__":
    main()
