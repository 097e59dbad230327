"""A change of the batch size that costs much is found, and answered by few recorded sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from modelrail_inference.model.batching import DynamicBatching, PaddedInput, Padding
from modelrail_inference.model.definition import ModelSettings
from modelrail_inference.model.session_settings import CudaSettings, SessionSettings
from modelrail_inference.model.signature import DYNAMIC, Signature, TensorSpec
from modelrail_inference.runtime.cuda import GraphError
from modelrail_inference.runtime.first_runs import batch_sizes
from modelrail_inference.runtime.first_runs.batch_sizes import (
    change_seconds,
    has_fixed_items,
    with_recorded_sizes,
)
from modelrail_inference.runtime.session import RunError

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (DYNAMIC, 3)),), (TensorSpec("y", "FP32", (DYNAMIC, 3)),)
)
RUN, CHANGE = 0.002, 0.070


class ScriptedSession:
    """Takes the time that it is told for each run, on a clock that stands still otherwise."""

    def __init__(self, cost: Callable[[int, int], float]) -> None:
        self.now = 0.0
        self.last = 0
        self.seen: list[tuple[int, ...]] = []
        self._cost = cost

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Any
    ) -> list[NDArray[Any]]:
        rows = len(inputs["x"])
        self.now += self._cost(self.last, rows)
        self.last = rows
        self.seen.append(inputs["x"].shape)
        return [np.zeros((rows, 3), np.float32) for _ in outputs]


def measured(
    monkeypatch: pytest.MonkeyPatch,
    cost: Callable[[int, int], float],
    signature: Signature = SIGNATURE,
    padding: Padding | None = None,
) -> tuple[float, ScriptedSession]:
    session = ScriptedSession(cost)
    monkeypatch.setattr(batch_sizes, "perf_counter", lambda: session.now)
    return change_seconds(session, signature, padding), session  # type: ignore[arg-type]


def test_a_change_that_is_prepared_anew_each_time_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, lambda last, rows: RUN + (CHANGE if last != rows else 0.0))
    assert found == pytest.approx(CHANGE)


def test_what_is_paid_once_for_each_size_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    paid: set[int] = set()

    def cost(_: int, rows: int) -> float:
        first = rows not in paid
        paid.add(rows)
        return RUN + (CHANGE if first else 0.0)

    assert measured(monkeypatch, cost)[0] == 0.0


def test_runs_that_take_longer_for_more_rows_are_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, lambda _, rows: RUN * rows)[0] == 0.0


def test_a_change_that_costs_less_than_two_runs_is_not_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, _ = measured(monkeypatch, lambda last, rows: 0.1 + (CHANGE if last != rows else 0.0))
    assert found == 0.0


def test_disturbances_of_single_runs_are_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def cost(_: int, rows: int) -> float:
        runs.append(rows)
        return RUN + (CHANGE if len(runs) == 8 else 0.0)

    assert measured(monkeypatch, cost)[0] == 0.0


def test_sizes_that_the_model_refuses_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> float:
        raise RunError("an even number is wanted")

    assert measured(monkeypatch, refuse)[0] == 0.0


def test_padded_inputs_have_the_first_length(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = Signature((TensorSpec("x", "FP32", (DYNAMIC, DYNAMIC)),), SIGNATURE.outputs)
    padding = Padding(edges=(8, 16), inputs={"x": PaddedInput(axis=1)}, mask=None)
    _, session = measured(monkeypatch, lambda *_: RUN, signature, padding)
    assert set(session.seen) == {(1, 8), (2, 8)}


def test_a_model_that_takes_long_is_not_measured_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    found, session = measured(monkeypatch, lambda last, rows: 0.6 if last == rows else 5.0)
    assert found == 0.0
    assert len(session.seen) == 2


@pytest.mark.parametrize(
    ("shapes", "fixed"),
    [
        ([(DYNAMIC, 3)], True),
        ([(DYNAMIC, 3), (DYNAMIC, DYNAMIC)], False),
        ([(DYNAMIC, 3, DYNAMIC)], False),
    ],
)
def test_items_are_fixed_where_only_the_batch_is_open(
    shapes: list[tuple[int, ...]], fixed: bool
) -> None:
    specs = tuple(TensorSpec(f"x{i}", "FP32", shape) for i, shape in enumerate(shapes))
    assert has_fixed_items(Signature(specs, SIGNATURE.outputs), None) is fixed


def test_padded_axes_and_the_mask_are_fixed_too() -> None:
    specs = tuple(TensorSpec(name, "FP32", (DYNAMIC, DYNAMIC)) for name in ("ids", "mask"))
    signature = Signature(specs, SIGNATURE.outputs)
    padding = Padding(edges=(8,), inputs={"ids": PaddedInput(axis=1)}, mask="mask")
    assert has_fixed_items(signature, padding)
    assert not has_fixed_items(signature, Padding((8,), {"ids": PaddedInput(axis=1)}, mask=None))


@pytest.mark.parametrize(
    ("largest", "preferred", "sizes"),
    [
        (2, (), (1, 2)),
        (8, (), (1, 2, 4, 8)),
        (12, (), (1, 2, 4, 8, 12)),
        (8, (6,), (1, 2, 4, 6, 8)),
    ],
)
def test_recorded_are_powers_of_two_and_the_largest_and_preferred_ones(
    largest: int, preferred: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    batching = DynamicBatching(preferred_sizes=preferred)
    settings = ModelSettings(max_batch_size=largest, batching=batching)
    recorded = with_recorded_sizes(settings, SIGNATURE, largest)
    assert recorded.batch_buckets == sizes
    assert recorded.session.cuda == CudaSettings(records_graphs=True)


def test_sizes_of_the_configuration_stay_and_so_does_the_rest() -> None:
    settings = ModelSettings(
        batch_buckets=(3, 5), session=SessionSettings(cuda=CudaSettings(device=1))
    )
    recorded = with_recorded_sizes(settings, SIGNATURE, 64)
    assert recorded.batch_buckets == (3, 5)
    assert recorded.session.cuda == CudaSettings(device=1, records_graphs=True)


def test_operators_that_run_in_parallel_have_no_order_to_record() -> None:
    settings = ModelSettings(session=SessionSettings(runs_parallel=True, inter_op_threads=4))
    session = with_recorded_sizes(settings, SIGNATURE, 4).session
    assert not session.runs_parallel
    assert session.inter_op_threads == 1


@pytest.mark.parametrize(
    ("edges", "sizes"), [(10, (1, 4, 16, 64)), (40, (64,)), (21, (4, 32, 64)[-2:])]
)
def test_fewer_sizes_are_recorded_of_many_lengths(edges: int, sizes: tuple[int, ...]) -> None:
    signature = Signature((TensorSpec("x", "FP32", (DYNAMIC, DYNAMIC)),), SIGNATURE.outputs)
    padding = Padding(tuple(range(1, edges + 1)), {"x": PaddedInput(axis=1)}, mask=None)
    recorded = with_recorded_sizes(ModelSettings(padding=padding), signature, 64)
    assert recorded.batch_buckets[-1] == 64
    assert len(recorded.batch_buckets) * edges <= 64
    assert len(recorded.batch_buckets) == len(sizes)


def test_very_large_batches_are_recorded_only_if_somebody_asks() -> None:
    with pytest.raises(GraphError, match="batches of 33554432 take more than 256 MiB"):
        with_recorded_sizes(ModelSettings(), SIGNATURE, 1 << 25)


def test_the_longest_items_decide_whether_batches_are_too_large_to_be_recorded() -> None:
    signature = Signature((TensorSpec("ids", "INT64", (-1, -1)),), SIGNATURE.outputs)
    padding = Padding((1, 1 << 25), {"ids": PaddedInput(1)})
    with pytest.raises(GraphError, match="take more than"):
        with_recorded_sizes(ModelSettings(padding=padding), signature, 4)
