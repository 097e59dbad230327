"""Latency histograms agree with numpy, whatever the distribution, and add up."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrail.bench.measurement.failure import RequestFailed
from modelrail.bench.measurement.histogram import LatencyHistogram
from modelrail.bench.measurement.tally import Tally

QUANTILES = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
# Half of the widest bucket, against its lowest value.
ERROR = 1 / 256


def filled(values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in values.tolist():
        histogram.record(value)
    return histogram


def samples(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    generator = np.random.default_rng(7)
    made = {
        "exponential": generator.exponential(2e6, 50_000),
        "log-normal": generator.lognormal(14, 2, 50_000),
        "two humps": np.concatenate(
            [generator.normal(1e6, 1e4, 49_000), generator.normal(9e8, 1e7, 1_000)]
        ),
        "nanoseconds": generator.uniform(0, 600, 50_000),
        "few": generator.uniform(1e5, 1e7, 7),
        "one": np.array([123_456_789]),
    }
    values: np.ndarray[tuple[int], np.dtype[np.int64]] = np.rint(made[name]).astype(np.int64)
    return values


@pytest.mark.parametrize(
    "name", ["exponential", "log-normal", "two humps", "nanoseconds", "few", "one"]
)
def test_quantiles_are_those_of_numpy_to_four_in_a_thousand(name: str) -> None:
    values = samples(name)
    histogram = filled(values)
    for q in QUANTILES:
        exact = float(np.quantile(values, q, method="inverted_cdf"))
        assert histogram.quantile(q) == pytest.approx(exact, rel=ERROR, abs=0.5), q
    assert histogram.count == len(values)
    assert histogram.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert (histogram.least, histogram.greatest) == (values.min(), values.max())


@given(st.integers(0, 2**44 - 1), st.integers(0, 2**44 - 1))
def test_every_value_falls_into_a_bucket_near_it(low: int, high: int) -> None:
    # Two values, so that neither the least nor the greatest one hides the bucket's middle.
    histogram = filled(np.array([0, low, high, 2**44 - 1], dtype=np.int64))
    middle = min(low, high)
    assert histogram.quantile(0.5) == pytest.approx(middle, rel=ERROR, abs=0.5)


def test_histograms_of_parts_add_up_to_that_of_the_whole() -> None:
    values = samples("log-normal")
    whole, total = filled(values), LatencyHistogram()
    for part in np.array_split(values, 3):
        sent = json.loads(json.dumps(filled(part).to_json()))
        total.add(LatencyHistogram.from_json(sent))
    assert total.to_json() == whole.to_json()
    assert total.count == whole.count


def test_an_empty_histogram_knows_no_quantile_and_changes_no_sum() -> None:
    assert math.isnan(LatencyHistogram().quantile(0.5))
    assert math.isnan(LatencyHistogram().mean)
    total = filled(samples("few"))
    before = total.to_json()
    total.add(LatencyHistogram())
    assert total.to_json() == before


def test_a_value_out_of_range_counts_as_the_nearest_one_within() -> None:
    histogram = filled(np.array([-5, 2**60], dtype=np.int64))
    assert (histogram.least, histogram.greatest) == (0, 2**44 - 1)


def test_tallies_of_processes_add_up_over_their_common_window() -> None:
    one, two = Tally(), Tally()
    for tally, latency in ((one, 1_000), (two, 3_000)):
        tally.latency.record(latency)
        for reason in ("", "QUEUE_FULL"):
            tally.fail(RequestFailed("UNAVAILABLE", "busy", reason), 2 * latency)
        tally.answers, tally.items, tally.unsent = 1, 4, 3
        tally.cpu_seconds = 0.5
    one.busiest_loop_share, two.busiest_loop_share = 0.2, 0.9
    one.window_start_ns, one.window_end_ns = 100, 1_100
    two.window_start_ns, two.window_end_ns = 100, 1_200
    total = Tally()
    for tally in (one, two):
        total.add(Tally.from_json(json.loads(json.dumps(tally.to_json()))))
    assert total.succeeded == 2
    assert total.latency.mean == 2_000
    assert total.failed == 4
    assert {kind: histogram.mean for kind, histogram in total.failures.items()} == {
        "UNAVAILABLE": 4_000,
        "UNAVAILABLE QUEUE_FULL": 4_000,
    }
    assert total.failure_examples == {"UNAVAILABLE": "busy", "UNAVAILABLE QUEUE_FULL": "busy"}
    assert (total.answers, total.items, total.unsent) == (2, 8, 6)
    assert (total.cpu_seconds, total.busiest_loop_share) == (1.0, 0.9)
    assert (total.window_start_ns, total.window_end_ns) == (100, 1_200)
