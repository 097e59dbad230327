"""What the measurements make of what they read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from modelrail.bench import BenchPlan, BenchReport, OpenLoop
from modelrail.bench.measurement.failure import RequestFailed
from modelrail.bench.measurement.tally import Tally
from modelrail.client import Connection
from modelrail.oip.v2 import grpc_service_pb2 as pb
from tests.load.generator import LoadFailed, LoadFigures, Target, _Counts, _spending
from tests.load.memory import Sample, fit
from tests.load.overload import Overloaded
from tests.load.ratios import BATCHED, ECHO, HANDLER, SINGLE, Cell, Rounds, ratios
from tests.load.raw import RawFigures, best
from tests.load.samples import Place, read
from tests.load.table import Table, spread


def load(requests_per_second: float, p50_seconds: float = 0.001) -> LoadFigures:
    return LoadFigures(requests_per_second, p50_seconds, 2 * p50_seconds, 0.0004, 1.0, False)


def raw(layout: str, items_per_second: float) -> RawFigures:
    return RawFigures(layout, 8, items_per_second, 0.0002, 0.01)


def test_a_sample_belongs_to_the_innermost_layer_and_interpreter_code_to_its_caller() -> None:
    outer = "run (/x/asyncio/events.py:7);handle (/x/modelrail_server/rpc/handlers.py:9)"
    push = "push (/x/modelrail_inference/scheduling/queue.py:3)"
    places = read(
        [
            f"{outer} 1",
            f"{outer};{push};PyDict_SetItem (/usr/lib/libpython3.11.so.1.0) 4",
            f"{outer};0x7f00 (/x/grpc/_cython/cygrpc.so);write (/usr/lib/libc.so.6) 2",
            "thread_run (/usr/lib/libc.so.6) 3",
        ]
    )
    assert places == {
        Place("chassis", "handle (handlers.py)"): 1,
        Place("scheduler", "push (queue.py)"): 4,
        Place("grpcio", "native code in cygrpc.so"): 2,
        Place("other", "thread_run (/usr/lib/libc.so.6)"): 3,
    }


def test_the_slope_leaves_out_the_settling_and_is_per_million_requests() -> None:
    settling = [Sample(n * 1000, 10_000_000 + n * 900_000) for n in range(10)]
    settled = [Sample(n * 1000, 50_000_000 + n * 2000) for n in range(10, 40)]
    slope, error = fit([*settling, *settled])
    assert slope == pytest.approx(2_000_000)
    assert error == pytest.approx(0, abs=1)


def test_ratios_are_made_within_a_round() -> None:
    rounds = Rounds(sweep=[])
    rounds.raw = [raw("2x1", 1000), raw("2x1", 500)]
    for host, rates in ((ECHO, (1000, 500)), (BATCHED, (800, 350)), (SINGLE, (400, 350))):
        rounds.served[Cell(host, False, 32)] = [load(rate) for rate in rates]
    rounds.served[Cell(BATCHED, True, 32)] = [load(1600), load(700)]
    rounds.served[Cell(SINGLE, True, 32)] = [load(800), load(700)]
    tiny = {ratio.name: (ratio.values, ratio.aim) for ratio in ratios("mlp", rounds)}
    assert tiny["server / echo, unary, 32 in flight: requests/s"] == ([0.8, 0.7], "≥ 0.70")
    assert tiny["streams / unary, 32 in flight: requests/s"] == ([2.0, 2.0], "≥ 1.7")
    large = {ratio.name: (ratio.values, ratio.aim) for ratio in ratios("minilm", rounds)}
    assert large["server / raw, unary, 32 in flight: items/s"] == ([0.8, 0.7], "≥ 0.95")
    assert large["server / raw, unary, 32 in flight: CPU per item"] == ([2.0, 2.0], "≤ 1.03")
    assert large["batching on / off, unary, 32 in flight: requests/s"] == (
        [2.0, 1.0],
        "never slower",
    )
    rounds.served[Cell(HANDLER, False, 32)] = [load(500), load(175)]
    by_hand = {ratio.name: (ratio.values, ratio.aim) for ratio in ratios("minilm", rounds)}
    assert by_hand["handler / raw, unary, 32 in flight: items/s"] == ([0.5, 0.35], "")
    assert by_hand["server / handler, unary, 32 in flight: requests/s"] == ([1.6, 2.0], "")
    on_gpu = {ratio.name: ratio for ratio in ratios("minilm", rounds, on_gpu=True)}
    assert on_gpu["server / raw, unary, 32 in flight: items/s"].values == [0.8, 0.7]
    assert on_gpu["server / echo, unary, 32 in flight: requests/s"].aim == ""


class Counted:
    """A host that has answered so many whenever it is asked, for so much processor time."""

    def __init__(self, answered: Sequence[int], cpu_seconds: Sequence[float]) -> None:
        self._answered = iter(answered)
        self._cpu_seconds = iter(cpu_seconds)

    async def statistics(self, model: str) -> pb.ModelStatisticsResponse:
        found = pb.ModelStatisticsResponse()
        found.model_stats.add().inference_stats.success.count = next(self._answered)
        return found

    def cpu_seconds(self) -> float:
        return next(self._cpu_seconds)


async def spending(host: Any) -> tuple[float, _Counts]:
    target = Target(host, "m", b"", {})
    return await _spending(host, target, _Counts(5, 0, 0, 0), 0.01, asyncio.Event())


async def test_processor_time_counts_from_when_all_is_under_way() -> None:
    # Twice nothing yet, then the first answers; then the two looks that count.
    seconds, counts = await spending(Counted([5, 5, 9, 100, 300], [4.0, 6.0]))
    assert (seconds, counts.succeeded) == (2.0, 200)


async def test_processor_time_for_no_answer_is_no_figure() -> None:
    with pytest.raises(LoadFailed, match="nothing was answered"):
        await spending(Counted([9, 100, 100], [4.0, 6.0]))


def overloaded(*failures: RequestFailed, unsent: int = 0) -> Overloaded:
    plan = BenchPlan(connection=Connection(address="unix:x"), model="m", load=OpenLoop(100.0))
    tally = Tally(window_end_ns=2_000_000_000, answers=50, unsent=unsent)
    for count, failure in enumerate(failures, start=1):
        for _ in range(count):
            tally.fail(failure, count * 1_000_000)
    report = BenchReport.of(
        plan, tally, server="", server_figures=None, interrupted=False, notes=[]
    )
    return Overloaded.of(report, best=50.0, metadata_seconds=0.0)


@pytest.mark.parametrize(
    ("code", "reason", "fate"),
    [
        ("UNAVAILABLE", "QUEUE_FULL", "refused"),
        ("UNAVAILABLE", "QUEUE_BYTES_FULL", "refused"),
        ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE", "refused"),
        ("RESOURCE_EXHAUSTED", "", "refused"),
        ("RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE", "unreachable"),
        ("UNAVAILABLE", "REQUEST_TIMEOUT", "late"),
        ("DEADLINE_EXCEEDED", "", "late"),
        ("UNAVAILABLE", "", "failed"),
        ("INTERNAL", "", "failed"),
    ],
)
def test_an_overload_tells_what_was_refused_from_what_waited_in_vain(
    code: str, reason: str, fate: str
) -> None:
    figures = overloaded(RequestFailed(code, "no", reason))
    counts = {name: getattr(figures, name) for name in ("refused", "unreachable", "late", "failed")}
    assert counts == dict.fromkeys(counts, 0.0) | {fate: 0.5}


def test_an_overload_shows_what_its_generator_did_not_send() -> None:
    assert overloaded(unsent=6).unsent == 3.0


def test_the_time_of_a_refusal_is_not_that_of_what_waited() -> None:
    figures = overloaded(
        RequestFailed("UNAVAILABLE", "no", "QUEUE_FULL"),
        RequestFailed("RESOURCE_EXHAUSTED", "no", "DEADLINE_UNREACHABLE"),
        RequestFailed("UNAVAILABLE", "no", "REQUEST_TIMEOUT"),
    )
    assert figures.refusal_p50_seconds == pytest.approx(0.002)


def test_the_best_raw_figure_has_the_most_items_in_a_second() -> None:
    assert best([raw("1x2", 900), raw("2x1", 1000)]).layout == "2x1"


def test_a_spread_is_the_median_with_least_and_greatest() -> None:
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"


def test_a_table_is_markdown_and_refuses_a_row_of_another_width() -> None:
    table = Table("rates", ("host", "requests/s"))
    table.add("server", 100)
    assert str(table).splitlines()[2:] == [
        "| host | requests/s |",
        "| --- | --- |",
        "| server | 100 |",
    ]
    with pytest.raises(ValueError, match="cells: expected 2, got 1"):
        table.add("server")
