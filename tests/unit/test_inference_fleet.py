"""One answer for all workers: sums, the worst state, and what silence means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from modelrail_inference.fleet.fleet import Index
from modelrail_inference.fleet.workers import Workers
from modelrail_inference.repository.lifecycle import State
from modelrail_inference.repository.repository import IndexEntry
from modelrail_inference.statistics import Statistics, VersionStatistics
from modelrail_server.errors import InvalidArgument, NotFound, Unavailable
from modelrail_server.supervision.merged_counts import MergedCounts


def answered(times: int, *, number: int = 1) -> VersionStatistics:
    statistics = Statistics()
    for _ in range(times):
        statistics.executed(times, 1, 2, 3)
        statistics.answered(times, queue_ns=4, input_ns=1, infer_ns=2, output_ns=3, total_ns=10)
    return VersionStatistics.of("a", number, statistics)


class Own:
    """What one worker knows."""

    def __init__(
        self,
        *,
        runs: int = 0,
        entries: Sequence[IndexEntry] = (),
        ready: bool = True,
        error: Exception | None = None,
    ) -> None:
        self._index, self._ready = Index(entries, {"b": ""}), ready
        self.statistics_now = [answered(runs)]
        self._error = error
        self.done: list[str] = []

    async def load(self, name: str) -> None:
        self.done.append(f"load {name}")

    async def unload(self, name: str) -> None:
        self.done.append(f"unload {name}")

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        if self._error is not None:
            raise self._error
        return [
            one
            for one in self.statistics_now
            if name in ("", one.model) and version in ("", str(one.number))
        ]

    async def index(self) -> Index:
        return self._index

    async def ready(self) -> bool:
        return self._ready

    async def model_ready(self, name: str, version: str) -> bool:
        return self._ready


def through_json(document: Any) -> Any:
    return json.loads(json.dumps(document))


class Connected:
    """Workers without processes; answers take the way through JSON."""

    def __init__(self, *owns: Own, failure: Exception | None = None) -> None:
        self._failure = failure
        self._all = [Workers(own, self, order_timeout_seconds=1.0) for own in owns]
        self._counts = MergedCounts()

    async def ask_all(
        self, method: str, arguments: Mapping[str, Any], *, timeout_seconds: float
    ) -> list[Any]:
        if self._failure is not None:
            raise self._failure
        return [through_json(await worker.answer(method, arguments)) for worker in self._all]

    async def ask_counts(self, about: Sequence[str], *, timeout_seconds: float) -> Sequence[Any]:
        answers = await self.ask_all("counts", {"about": about}, timeout_seconds=timeout_seconds)
        for number, rows in enumerate(answers):
            self._counts.report(number, rows, about)
        total: list[Any] = through_json(self._counts.total(about))
        return total

    async def order(self, subject: str, method: str, *, timeout_seconds: float) -> None:
        if self._failure is not None:
            raise self._failure
        for worker in self._all:
            await worker.answer(method, {"subject": subject})


def workers(*owns: Own, failure: Exception | None = None) -> Workers:
    return Workers(owns[0], Connected(*owns, failure=failure), order_timeout_seconds=1.0)


async def test_statistics_are_added_up() -> None:
    (total,) = await workers(Own(runs=2), Own(runs=2), Own(runs=3)).statistics("", "")
    assert (total.model, total.number) == ("a", 1)
    assert total.inference_count == 2 * 2 + 2 * 2 + 3 * 3
    assert total.execution_count == total.success.count == 7
    assert (total.success.ns, total.queue.ns, total.compute_infer.ns) == (70, 28, 14)
    assert {size: batch.count for size, batch in total.batches.items()} == {2: 4, 3: 3}
    assert total.batches[2].infer_ns == 8
    assert total.last_inference_ms > 0


def test_statistics_survive_the_way_between_processes() -> None:
    statistics = answered(3)
    counts = through_json(statistics.counts())
    assert VersionStatistics.from_counts("a", 1, counts) == statistics


async def test_only_what_was_counted_meanwhile_is_reported_again_and_again() -> None:
    own = Own(runs=2)
    one = workers(own)
    ((key, counts),) = await one.answer("changed_counts", {})
    assert key == ["a", "1"]
    assert counts["success"]["count"] == 2
    await one.answer("counts_told", {})
    own.statistics_now = [*own.statistics_now, answered(3, number=2)]
    first, second = await one.answer("changed_counts", {})
    assert first == [["a", "1"], None]
    assert second[1]["success"]["count"] == 3


async def test_counts_that_could_not_be_told_are_reported_again() -> None:
    one = workers(Own(runs=2))
    for _ in range(2):
        ((_, counts),) = await one.answer("changed_counts", {})
        assert counts is not None
    await one.answer("counts_told", {})
    assert await one.answer("changed_counts", {}) == [[["a", "1"], None]]


async def test_statistics_are_those_of_the_versions_that_are_asked_for() -> None:
    own = Own()
    own.statistics_now = [answered(1, number=2), answered(1, number=10)]
    both = workers(own, own)
    for name, version, numbers in (
        ("", "", [2, 10]),
        ("", "2", [2]),
        ("a", "", [2, 10]),
        ("a", "10", [10]),
    ):
        assert [one.number for one in await both.statistics(name, version)] == numbers


async def test_a_worker_that_does_not_know_a_model_is_left_out_unless_all_are() -> None:
    unknown = InvalidArgument("not available")
    (total,) = await workers(Own(error=unknown), Own(runs=2)).statistics("a", "")
    assert total.execution_count == 2
    with pytest.raises(InvalidArgument, match="not available"):
        await workers(Own(error=unknown), Own(error=unknown)).statistics("a", "")


async def test_ready_means_ready_everywhere() -> None:
    assert await workers(Own(), Own()).ready()
    assert not await workers(Own(), Own(ready=False)).ready()
    assert not await workers(Own(ready=False), Own()).model_ready("a", "")


async def test_the_index_shows_the_worker_that_is_not_ready() -> None:
    good = IndexEntry("a", 1, State.READY, "")
    bad = IndexEntry("a", 1, State.UNAVAILABLE, "broken")
    for rows in ((good, bad), (bad, good)):
        index = await workers(*(Own(entries=[row]) for row in rows)).index()
        assert index.entries == [bad]
        assert index.problems == {"b": ""}
    assert (await workers(Own(entries=[good]), Own(entries=[good])).index()).entries == [good]


@pytest.mark.parametrize("failure", [TimeoutError(), ConnectionError("gone"), Unavailable("full")])
async def test_without_the_supervisor_a_worker_speaks_for_itself(failure: Exception) -> None:
    alone = workers(Own(runs=2, ready=False), Own(runs=5), failure=failure)
    (row,) = await alone.statistics("a", "")
    assert row.execution_count == 2
    assert not await alone.ready()


async def test_orders_go_to_all_and_say_when_they_cannot() -> None:
    owns = Own(), Own()
    await workers(*owns).load("a")
    await workers(*owns).unload("a")
    assert [own.done for own in owns] == [["load a", "unload a"]] * 2
    for failure in (TimeoutError(), ConnectionError("gone")):
        with pytest.raises(Unavailable, match=r"load may go on .* supervisor does not answer$"):
            await workers(*owns, failure=failure).load("a")
    with pytest.raises(NotFound):
        await workers(*owns, failure=NotFound("no")).unload("a")


async def test_a_replacement_catches_up_with_the_models_of_the_others() -> None:
    ready = IndexEntry("a", 1, State.READY, "")
    loading = IndexEntry("a", 1, State.LOADING, "")
    behind = workers(Own(entries=[loading]), Own(entries=[ready]))
    own = behind._missing
    assert await own() == {"a"}
    assert await workers(Own(entries=[ready]), Own(entries=[ready]))._missing() == set()
    # A model that is ready nowhere else is not waited for.
    await workers(Own(entries=[loading]), Own(entries=[loading])).catch_up(timeout_seconds=60)
    await behind.catch_up(timeout_seconds=0.01)
