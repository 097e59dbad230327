"""What several workers counted, as one: sums that do not go back while somebody has the key."""

from __future__ import annotations

from typing import Any

from modelrail_server.supervision.merged_counts import MergedCounts, Row

A, B = ("a", "1"), ("b", "1")


def counted(key: tuple[str, str], count: int, *, last: int = 0) -> Row:
    return key, {"last_ms": last, "success": {"count": count, "ns": 10 * count}}


def counts_of(merged: MergedCounts, *about: str) -> dict[Any, int]:
    return {key: counts["success"]["count"] for key, counts in merged.total(about)}


def test_counts_add_up_and_of_moments_the_last_is_shown() -> None:
    merged = MergedCounts()
    merged.report(0, [counted(A, 2, last=7)])
    merged.report(1, [counted(A, 3, last=5)])
    assert merged.total(()) == [(A, {"last_ms": 7, "success": {"count": 5, "ns": 50}})]


def test_what_a_worker_said_last_counts_until_it_ends_and_after() -> None:
    merged = MergedCounts()
    merged.report(0, [counted(A, 40)])
    merged.report(1, [counted(A, 2)])
    merged.retire(0)
    assert counts_of(merged) == {A: 42}
    merged.report(0, [counted(A, 1)])
    assert counts_of(merged) == {A: 43}
    merged.report(1, [(A, None)])  # as before
    assert counts_of(merged) == {A: 43}


def test_a_key_that_no_worker_has_any_more_is_gone_and_begins_at_zero() -> None:
    merged = MergedCounts()
    for worker in (0, 1, 2):
        merged.report(worker, [counted(A, 10), counted(B, 1)])
    merged.retire(2)
    merged.report(0, [counted(B, 1)])
    assert counts_of(merged) == {A: 30, B: 3}  # the other still has it
    merged.report(1, [counted(B, 1)])
    assert counts_of(merged) == {B: 3}
    merged.report(0, [counted(A, 0), counted(B, 1)])
    assert counts_of(merged) == {A: 0, B: 3}


def test_an_answer_says_nothing_of_what_was_not_asked() -> None:
    merged = MergedCounts()
    merged.report(0, [counted(A, 10), counted(B, 1)])
    merged.retire(0)
    merged.report(1, [counted(A, 1)], about=["a"])
    assert counts_of(merged) == {A: 11}
    merged.report(1, [counted(B, 1)], about=["b", "1"])
    assert counts_of(merged) == {A: 11, B: 2}
    assert counts_of(merged, "b") == {B: 2}


def test_what_was_taken_away_is_forgotten_although_it_is_there_again() -> None:
    merged = MergedCounts()
    for worker in (0, 1):
        merged.report(worker, [counted(A, 10), counted(B, 1)])
    merged.retire(0)
    merged.forget(["a"])
    merged.report(1, [counted(A, 0), counted(B, 1)])
    assert counts_of(merged) == {A: 0, B: 2}


def test_as_before_of_a_key_that_was_never_told_takes_nothing_away() -> None:
    merged = MergedCounts()
    merged.report(0, [counted(A, 40)])
    merged.retire(0)
    merged.report(0, [(A, None)])
    merged.report(1, [counted(B, 1)])
    assert counts_of(merged) == {A: 40, B: 1}
    merged.report(2, [(("c", "1"), None)])  # nothing is known of it
    assert counts_of(merged) == {A: 40, B: 1}


def test_a_late_report_brings_nothing_back_that_was_forgotten() -> None:
    merged = MergedCounts()
    merged.report(0, [counted(A, 60), counted(B, 1)])
    merged.report(1, [counted(A, 40), counted(B, 1)])
    merged.forget(["a"])
    assert counts_of(merged) == {B: 2}
    merged.report(0, [counted(B, 1)])  # while the model is away
    for worker in (0, 1):
        merged.report(worker, [counted(A, 0), counted(B, 1)])
    assert counts_of(merged) == {A: 0, B: 2}
