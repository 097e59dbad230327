"""What the figures of the hosts say about each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tests.load.generator import LoadFigures
from tests.load.raw import RawFigures

ECHO = "bare grpc.aio echo"
HANDLER = "handler by hand"
BATCHED = "server"
SINGLE = "server, batching off"
GRAPHS = "server, CUDA graphs"


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of measurements.

    Attributes:
        host: Which host.
        streaming: ModelStreamInfer in place of ModelInfer.
        concurrency: Requests in flight.
    """

    host: str
    streaming: bool
    concurrency: int

    def __str__(self) -> str:
        return f"{self.host}, {_calls(self.streaming)}, {self.concurrency} in flight"


@dataclass(slots=True)
class Rounds:
    """Everything that was measured of one model.

    Attributes:
        sweep: ONNX Runtime alone with every batch size and layout, once.
        raw: ONNX Runtime alone as it was fastest, in each round.
        served: Each host under load, in each round.
    """

    sweep: Sequence[RawFigures]
    raw: list[RawFigures] = field(default_factory=list)
    served: dict[Cell, list[LoadFigures]] = field(default_factory=lambda: defaultdict(list))

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON."""
        return {
            "sweep": [asdict(one) for one in self.sweep],
            "raw": [asdict(one) for one in self.raw],
            "served": [
                asdict(cell) | {"rounds": [asdict(one) for one in figures]}
                for cell, figures in self.served.items()
            ],
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """A comparison.

    Attributes:
        name: What is compared.
        values: Its value in each round.
        aim: What it shall be; empty where nothing was set.
        digits: Digits after the point that mean something.
    """

    name: str
    values: Sequence[float]
    aim: str
    digits: int = 2


def ratios(model: str, rounds: Rounds, *, on_gpu: bool = False) -> list[Ratio]:
    """Returns the comparisons whose two sides were both measured.

    On a GPU all models are compared with the transport too: beside such a device it is the limit,
    and the aims, which were set for processors, say nothing.
    """
    tiny = model == "mlp" and not on_gpu
    found = [*_to_echo(rounds)] if tiny or on_gpu else []
    if not tiny:
        found += _to_raw(rounds)
    if on_gpu:
        found = [replace(ratio, aim="") for ratio in found]
    for concurrency in sorted({cell.concurrency for cell in rounds.served}):
        streams, unary = Cell(BATCHED, True, concurrency), Cell(BATCHED, False, concurrency)
        if streams in rounds.served:
            found.append(
                Ratio(
                    f"streams / unary, {concurrency} in flight: requests/s",
                    _over(rounds, streams, unary, _rate),
                    "≥ 1.7" if tiny and concurrency == 32 else "",
                )
            )
        for cell in (unary, streams):
            if cell in rounds.served:
                single = Cell(SINGLE, cell.streaming, concurrency)
                found.append(
                    Ratio(
                        f"batching on / off, {_where(cell)}: requests/s",
                        _over(rounds, cell, single, _rate),
                        "" if model == "mlp" else "never slower",
                    )
                )
            recorded = Cell(GRAPHS, cell.streaming, concurrency)
            if recorded in rounds.served:
                found.append(
                    Ratio(
                        f"CUDA graphs / none, {_where(cell)}: requests/s",
                        _over(rounds, recorded, cell, _rate),
                        "",
                    )
                )
    return found


def _to_echo(rounds: Rounds) -> list[Ratio]:
    """Compares with the transport and with a handler: what is added is the server's own."""
    found = []
    for cell in rounds.served:
        if cell.host != BATCHED or cell.streaming:
            continue
        bare = Cell(ECHO, False, cell.concurrency)
        many, one = cell.concurrency == 32, cell.concurrency == 1
        found += [
            Ratio(
                f"server / echo, {_where(cell)}: requests/s",
                _over(rounds, cell, bare, _rate),
                "≥ 0.70" if many else "",
            ),
            Ratio(
                f"server / echo, {_where(cell)}: CPU per request",
                _over(rounds, cell, bare, _cpu),
                "",
            ),
            Ratio(
                f"server - echo, {_where(cell)}: p50 in µs",
                [
                    (ours.p50_seconds - theirs.p50_seconds) * 1e6
                    for ours, theirs in zip(rounds.served[cell], rounds.served[bare], strict=True)
                ],
                "≤ 120" if one else "",
                digits=0,
            ),
        ]
        by_hand = Cell(HANDLER, False, cell.concurrency)
        if by_hand in rounds.served:
            where = _where(cell)
            found.append(
                Ratio(
                    f"handler / echo, {where}: requests/s", _over(rounds, by_hand, bare, _rate), ""
                )
            )
            found += _to_handler(rounds, cell)
    return found


def _to_raw(rounds: Rounds) -> list[Ratio]:
    """Compares with ONNX Runtime: what is missing from it is what serving costs."""
    found = []
    for cell in rounds.served:
        if cell.host == HANDLER:
            found += _of_raw(rounds, cell, "handler")
        if cell.host != BATCHED:
            continue
        held = cell.concurrency in {8, 32}
        found += _of_raw(rounds, cell, "server", aims=("≥ 0.95", "≤ 1.03") if held else ("", ""))
        found.append(
            Ratio(
                f"p99 / p50, {_where(cell)}",
                [one.p99_seconds / one.p50_seconds for one in rounds.served[cell]],
                "≤ 1.3" if cell.concurrency == 32 else "",
            )
        )
        if not cell.streaming:
            found += _to_handler(rounds, cell)
    return found


def _of_raw(rounds: Rounds, cell: Cell, name: str, aims: tuple[str, str] = ("", "")) -> list[Ratio]:
    pairs = list(zip(rounds.served[cell], rounds.raw, strict=True))
    return [
        Ratio(
            f"{name} / raw, {_where(cell)}: items/s",
            [host.requests_per_second / raw.items_per_second for host, raw in pairs],
            aims[0],
        ),
        Ratio(
            f"{name} / raw, {_where(cell)}: CPU per item",
            [host.cpu_seconds_per_request / raw.cpu_seconds_per_item for host, raw in pairs],
            aims[1],
        ),
    ]


def _to_handler(rounds: Rounds, cell: Cell) -> list[Ratio]:
    """Compares with the least that a server in Python can do to run the model."""
    by_hand = Cell(HANDLER, False, cell.concurrency)
    if by_hand not in rounds.served:
        return []
    return [
        Ratio(f"server / handler, {_where(cell)}: {what}", _over(rounds, cell, by_hand, of), "")
        for what, of in (("requests/s", _rate), ("CPU per request", _cpu))
    ]


def _over(
    rounds: Rounds, above: Cell, below: Cell, of: Callable[[LoadFigures], float]
) -> list[float]:
    pairs = zip(rounds.served[above], rounds.served[below], strict=True)
    return [of(one) / of(other) for one, other in pairs]


def _rate(figures: LoadFigures) -> float:
    return figures.requests_per_second


def _cpu(figures: LoadFigures) -> float:
    return figures.cpu_seconds_per_request


def _where(cell: Cell) -> str:
    return f"{_calls(cell.streaming)}, {cell.concurrency} in flight"


def _calls(streaming: bool) -> str:
    return "streams" if streaming else "unary"
