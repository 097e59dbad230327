"""How much memory the server takes, whether it stays at that, and how long a start takes.

    python -m tests.load.memory --requests 1000000

The requests are good ones with cancels and mistakes among them. Then cancelled requests alone go to
the server and to a bare grpc.aio handler, which tells what is grpcio's own. A line is fitted to the
resident memory over the last three quarters of the requests: its slope, and how sure that is, tell
growth from noise.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.load import echo
from tests.load.mixture import Kind, send_mixture
from tests.load.models import FOLDER, MODELS
from tests.load.process import Host, inference_command, running
from tests.load.request import encode
from tests.load.table import Table, megabytes, publish, spread

_SAMPLES = 80
_SETTLING_SHARE = 0.25
_CANCELS = 10
"""Every so many requests one more, cancelled, in the comparison of cancels."""
_BARE_SECONDS = 0.02
"""What the bare handler waits: longer than a caller waits before it gives up."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the server.

    Attributes:
        listening_seconds: From the start of the process until it listened.
        ready_seconds: Until everything was loaded.
        resident_bytes: Memory then.
    """

    listening_seconds: float
    ready_seconds: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory after so many requests."""

    requests: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Flatness:
    """Memory over many requests.

    Attributes:
        samples: In order; the first before any request.
        outcomes: Requests by kind and status code.
        slope_bytes: Growth of the fitted line over 1,000,000 requests.
        slope_error_bytes: Standard error of that.
    """

    samples: Sequence[Sample]
    outcomes: Counter[tuple[str, str]]
    slope_bytes: float
    slope_error_bytes: float


async def start(*flags: str) -> Start:
    """Starts the server and stops it."""
    async with running(inference_command(*flags)) as host:
        memory = host.memory()
        return Start(host.listening_seconds, host.ready_seconds, memory.resident_bytes)


def fit(samples: Sequence[Sample]) -> tuple[float, float]:
    """Returns slope and standard error of the line through the samples, per 1,000,000 requests."""
    settled = samples[int(len(samples) * _SETTLING_SHARE) :]
    x = np.array([sample.requests for sample in settled], dtype=float) / 1e6
    y = np.array([sample.resident_bytes for sample in settled], dtype=float)
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)
    return float(coefficients[0]), float(np.sqrt(covariance[0, 0]))


def kinds(model: str) -> list[Kind]:
    """Returns nine good requests of ten, the rest given up, of a wrong shape or of no model."""
    generator = np.random.default_rng(0)
    inputs = MODELS[model].inputs(1, generator)
    wrong = {name: value[..., :-1] for name, value in inputs.items()}
    return [
        Kind("good", 0.90, encode(model, inputs)),
        Kind("cancelled", 0.05, encode(model, inputs), cancelled=True),
        Kind("wrong shape", 0.03, encode(model, wrong)),
        Kind("unknown model", 0.02, encode("nobody", inputs)),
    ]


async def flatness(
    host: Host, sent: Sequence[Kind], *, requests: int, concurrency: int
) -> Flatness:
    """Sends so many requests and looks at the memory between them."""
    samples = [Sample(0, host.memory().resident_bytes)]
    every = max(requests // _SAMPLES, 1)

    def look(answered: int) -> None:
        if answered % every == 0:
            samples.append(Sample(answered, host.memory().resident_bytes))

    outcomes = await send_mixture(
        host.address, sent, requests=requests, concurrency=concurrency, progress=look
    )
    slope, error = fit(samples)
    return Flatness(samples, outcomes, slope, error)


async def flatness_of_cancels(
    requests: int, concurrency: int, replies: Path, *flags: str
) -> dict[str, Flatness]:
    """Sends cancelled requests alone, to the server and to a bare handler that waits."""
    mixture = {kind.name: kind for kind in kinds("mlp")}
    cancelled = [mixture["cancelled"]]
    found: dict[str, Flatness] = {}
    async with running(inference_command(*flags)) as host:
        await echo.record(host.address, "mlp", mixture["good"].body, replies)
        found["server"] = await flatness(
            host, cancelled, requests=requests, concurrency=concurrency
        )
    command = echo.command(replies, delay_seconds=_BARE_SECONDS)
    async with running(command, wait_ready=False) as host:
        found["bare grpc.aio handler"] = await flatness(
            host, cancelled, requests=requests, concurrency=concurrency
        )
    return found


def start_table(starts: dict[str, list[Start]]) -> Table:
    """Returns memory and times of the starts."""
    table = Table("starts", ("models", "listening s", "ready s", "resident MB"))
    for what, found in starts.items():
        table.add(
            what,
            spread([one.listening_seconds for one in found]),
            spread([one.ready_seconds for one in found]),
            spread([one.resident_bytes / 1e6 for one in found], 1),
        )
    return table


def flatness_tables(found: Flatness) -> list[Table]:
    """Returns memory over the requests, and how they ended."""
    last = found.samples[-1].requests
    memory = Table(f"resident memory over {last} requests", ("requests", "resident MB"))
    for index in np.linspace(0, len(found.samples) - 1, 9).round().astype(int):
        sample = found.samples[index]
        memory.add(sample.requests, megabytes(sample.resident_bytes))
    memory.add(
        "slope over 1,000,000 requests",
        f"{megabytes(found.slope_bytes)} ± {megabytes(found.slope_error_bytes)}",
    )
    outcomes = Table("what was sent and how it ended", ("request", "status", "count"))
    for (kind, code), count in sorted(found.outcomes.items()):
        outcomes.add(kind, code, count)
    return [memory, outcomes]


def cancels_table(found: dict[str, Flatness]) -> Table:
    """Returns how memory grows with cancelled requests."""
    table = Table("cancelled requests alone", ("host", "requests", "slope MB a million"))
    for what, one in found.items():
        slope = f"{megabytes(one.slope_bytes)} ± {megabytes(one.slope_error_bytes)}"
        table.add(what, one.samples[-1].requests, slope)
    return table


async def measure(
    options: argparse.Namespace,
) -> tuple[dict[str, list[Start]], Flatness, dict[str, Flatness]]:
    """Measures starts and flatness."""
    more = shlex.split(options.server_flags)
    file = MODELS["mlp"].file(options.folder)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-") as work:
        empty = Path(work) / "empty"
        empty.mkdir()
        with_model = ["--model", str(file), "--data-dir", str(Path(work) / "data"), *more]
        variants = {"none": ["--model-repository", str(empty), *more], "mlp": with_model}
        starts: dict[str, list[Start]] = {what: [] for what in variants}
        for _ in range(options.rounds):
            for what, flags in variants.items():
                starts[what].append(await start(*flags))
        async with running(inference_command(*with_model)) as host:
            flat = await flatness(
                host, kinds("mlp"), requests=options.requests, concurrency=options.concurrency
            )
        replies = Path(work) / "replies"
        replies.mkdir()
        cancels = await flatness_of_cancels(
            max(options.requests // _CANCELS, 1), options.concurrency, replies, *with_model
        )
        return starts, flat, cancels


def main() -> None:
    """Measures memory."""
    parser = argparse.ArgumentParser(description="Memory and start of the server.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each kind")
    parser.add_argument("--server-flags", default="", help="more flags for the server, as one text")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if options.quick:
        options.requests, options.rounds = 2000, 1
    starts, flat, cancels = asyncio.run(measure(options))
    figures = {
        "starts": {what: [asdict(one) for one in found] for what, found in starts.items()},
        "samples": [asdict(sample) for sample in flat.samples],
        "slope_bytes": flat.slope_bytes,
        "slope_error_bytes": flat.slope_error_bytes,
        "cancels_slope_bytes": {what: one.slope_bytes for what, one in cancels.items()},
    }
    tables = [start_table(starts), *flatness_tables(flat), cancels_table(cancels)]
    publish(tables, figures, options.json)


if __name__ == "__main__":
    main()
