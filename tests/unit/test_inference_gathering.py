"""Requests of quick models that wait for each other, on an event loop and a clock of the test."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import Context, ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from modelrail_inference.model.batching import DynamicBatching, QueuePolicy, TimeoutAction
from modelrail_inference.model.definition import LoadedModel, ModelSettings
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature, TensorSpec
from modelrail_inference.request.feed import Feed
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.on_loop import loop_load
from modelrail_inference.scheduling.on_loop.crowd import MOST_REQUESTS, Crowd
from modelrail_inference.scheduling.on_loop.gathering import Gathering, Patience
from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.on_loop.loop_load import LoopLoad, voluntary_switches
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.queue.refusals import is_out

# --- the load of the event loop -------------------------------------------------------------------


class Switches:
    """A count of voluntary switches that the test says."""

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def __call__(self) -> int:
        return self.count


def after(
    load: LoopLoad, switches: Switches, *, each: float, seconds: float = 0.001, since: float = 0.0
) -> float:
    """Lets 64 requests come, with so many switches and so much time for each; returns the time."""
    now, counted = since, float(switches.count)
    for _ in range(64):
        now += seconds
        counted += each
        switches.count = int(counted)
        load.came(now)
    return now


@pytest.mark.parametrize(
    ("each", "seconds", "is_saturated"),
    [(0.0, 0.001, True), (0.4, 0.001, True), (0.6, 0.001, False), (0.0, 0.01, False)],
    ids=["never waits", "hardly waits", "waits", "has few requests"],
)
def test_a_loop_that_hardly_waits_for_many_requests_is_saturated(
    each: float, seconds: float, is_saturated: bool
) -> None:
    switches = Switches()
    load = LoopLoad(switches)
    after(load, switches, each=each, seconds=seconds)
    assert load.is_saturated is is_saturated


def test_where_no_switch_is_counted_no_loop_is_saturated() -> None:
    switches = Switches(0)
    load = LoopLoad(switches)
    after(load, switches, each=0.0)
    assert not load.is_saturated


def test_a_loop_that_was_saturated_is_not_for_the_next_request_that_comes_much_later() -> None:
    switches = Switches()
    load = LoopLoad(switches)
    now = after(load, switches, each=0.0)
    assert load.came(now + 0.05)
    assert not load.came(now + 0.2)


def test_a_loop_that_would_have_waited_had_it_slept_is_not_saturated() -> None:
    switches = Switches()
    load = LoopLoad(switches)
    now = after(load, switches, each=0.0)
    assert load.is_saturated
    for _ in range(64):
        load.would_have_waited()
        now += 0.001
        load.came(now)
    assert not load.is_saturated


def test_where_threads_count_no_switches_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_load, "_THREAD", None)
    assert voluntary_switches() == 0


def test_a_thread_that_waits_gives_its_processor_away_and_the_kernel_counts_that() -> None:
    counts, told = list[int](), list[str]()
    asked, given = threading.Semaphore(0), threading.Semaphore(0)

    def wait() -> None:
        before = voluntary_switches()
        for _ in range(20):
            asked.release()
            given.acquire()  # the other thread has to run before
        counts.append(voluntary_switches() - before)
        told.extend(Path("/proc/thread-self/status").read_text().splitlines())

    thread = threading.Thread(target=wait)
    thread.start()
    for _ in range(20):
        asked.acquire()
        given.release()
    thread.join()
    if not any(re.fullmatch(r"voluntary_ctxt_switches:\s+[1-9]\d*", line) for line in told):
        pytest.skip("this kernel counts no switches")
    assert counts[0] > 0


# --- the crowd ------------------------------------------------------------------------------------


def gathered(crowd: Crowd, callers: int, batches: int) -> list[int]:
    """Returns what is wanted before each batch, when so many callers are there all the time."""
    wanted = []
    for _ in range(batches):
        wanted.append(crowd.wanted)
        crowd.came(min(crowd.wanted, callers))
    return wanted


@pytest.mark.parametrize("callers", [3, 8, 31, 32])
def test_a_crowd_of_callers_is_found_by_trying(callers: int) -> None:
    crowd = Crowd()
    assert gathered(crowd, callers, 4) == [1, 1, 1, 1]
    assert crowd.wanted == MOST_REQUESTS
    gathered(crowd, callers, 1)
    assert crowd.wanted == callers


def test_two_callers_are_not_worth_it_to_wait_for_each_other() -> None:
    crowd = Crowd()
    wanted = gathered(crowd, 2, 3000)
    assert set(wanted) == {1, MOST_REQUESTS}
    assert wanted.count(MOST_REQUESTS) < 20


def test_more_callers_than_are_waited_for_do_no_harm() -> None:
    crowd = Crowd()
    gathered(crowd, 100, 10)
    assert crowd.wanted == MOST_REQUESTS
    crowd.came(100)
    assert crowd.wanted == MOST_REQUESTS


def test_trials_that_find_nobody_else_become_seldom_but_never_stop() -> None:
    wanted = gathered(Crowd(), 3, 3000)
    trials = [index for index, count in enumerate(wanted) if count == MOST_REQUESTS]
    pauses = [after - before for before, after in pairwise(trials)]
    assert pauses[:8] == [5, 9, 17, 33, 65, 129, 257, 257]  # the trial, and the pause after it
    assert set(pauses[8:]) == {257}


def test_callers_that_come_later_are_found_however_seldom_trials_have_become() -> None:
    crowd = Crowd()
    gathered(crowd, 3, 3000)
    assert 20 in gathered(crowd, 20, 258)


def test_where_more_came_still_more_are_soon_tried() -> None:
    crowd = Crowd()
    gathered(crowd, 3, 3000)
    while crowd.wanted != 20:
        crowd.came(min(crowd.wanted, 20))
    gathered(crowd, 30, 5)
    assert crowd.wanted == 30


def test_callers_that_leave_are_not_waited_for_for_long() -> None:
    crowd = Crowd()
    gathered(crowd, 32, 10)
    wanted = gathered(crowd, 1, 50)
    assert wanted[:6] == [32, 16, 8, 4, MOST_REQUESTS, 1]  # the fifth is a trial
    assert crowd.wanted in (1, MOST_REQUESTS)
    assert sum(count > 1 for count in gathered(crowd, 1, 1000)) < 10


def test_one_hiccup_does_not_split_a_crowd_for_long() -> None:
    crowd = Crowd()
    gathered(crowd, 8, 3000)
    crowd.came(4)
    assert crowd.wanted == 6
    gathered(crowd, 8, 5)
    assert crowd.wanted == 8


def test_a_crowd_that_could_not_run_together_is_not_waited_for() -> None:
    crowd = Crowd()
    gathered(crowd, 32, 10)
    assert crowd.wanted == 32
    crowd.was_in_vain()
    assert crowd.wanted == 1
    # Tried again, but less soon each time.
    for pause in (8, 16):
        assert gathered(crowd, 1, pause) == [1] * pause
        assert crowd.wanted == MOST_REQUESTS
        crowd.was_in_vain()


async def test_what_waits_for_a_thread_lets_nobody_wait_on_the_event_loop() -> None:
    lane = lane_of()
    feed = Feed((), (), 1, (), is_exact=True)
    assert lane.gathers(feed)
    lane.queue.push(request_of(lane))
    assert not lane.gathers(feed)


@pytest.mark.parametrize("action", TimeoutAction)
async def test_a_policy_that_rejects_what_waited_too_long_does_so_here_too(
    action: TimeoutAction,
) -> None:
    lane = lane_of()
    lane.queue.batching = DynamicBatching(policy=QueuePolicy(on_timeout=action))
    request = request_of(lane)
    assert not is_out(request, 2.0)
    request.wait_until = 1.0
    assert not is_out(request, 0.5)
    assert is_out(request, 2.0) is (action is TimeoutAction.REJECT)
    request.deadline = 3.0
    assert is_out(request, 3.0)


# --- the gathering --------------------------------------------------------------------------------


class Turns:
    """An event loop whose turns the test makes, and their time."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.soon: list[tuple[Callable[[], None], Context]] = []

    def call_soon(self, callback: Callable[[], None], *, context: Context) -> object:
        self.soon.append((callback, context))
        return callback

    def turn(self, seconds: float) -> None:
        """Lets a turn take so long, and the next begin."""
        self.seconds += seconds
        due, self.soon = self.soon, []
        for callback, context in due:
            context.run(callback)


class Yard:
    """A gathering, and what it has handed on."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.loop = Turns()
        self.batches: list[tuple[str, list[QueuedRequest]]] = []
        self.breaks: set[str] = set()
        self.idle = 0
        self.gathering = Gathering(
            cast("Any", self.loop), self._hand_on, self._idled, patience, lambda: self.loop.seconds
        )

    def _idled(self) -> None:
        self.idle += 1

    def _hand_on(self, lane: Lane, requests: list[QueuedRequest]) -> None:
        self.batches.append((lane.model.model, requests))
        if lane.model.model in self.breaks:
            raise RuntimeError(lane.model.model)

    def add(self, lane: Lane, rows: int = 1) -> QueuedRequest:
        request = request_of(lane, rows)
        assert self.gathering.fits(lane, request.feed)
        self.gathering.add(request, self.loop.seconds)
        return request

    def sizes(self) -> list[int]:
        """Returns how many requests were handed on together, each time."""
        return [len(requests) for _, requests in self.batches]


def lane_of(
    name: str = "m",
    *,
    wanted: int = 32,
    max_rows: int = 64,
    row_seconds: float = 1e-6,
) -> Lane:
    """Returns the lane of a model whose runs take so long for a row."""
    model = LoadedModel(
        model=name,
        number=1,
        signature=Signature((TensorSpec("x", "FP32", (-1, 2)),), ()),
        max_batch_size=max_rows,
        provider=Provider.CPU,
        session=None,
        settings=ModelSettings(max_batch_size=max_rows, batching=DynamicBatching()),
        is_bounded=True,
    )
    lane = Lane(model, instances=1, budget=LoopBudget())
    lane.crowd.wanted = wanted
    for rows in (1, 2, 64) * 50:
        lane.quickness.learn(rows, rows * row_seconds)
    return lane


def request_of(lane: Lane, rows: int = 1, key: object = ()) -> QueuedRequest:
    feed = Feed((), (), rows, key, is_exact=True)
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return QueuedRequest(lane, feed, future, lambda: None, size_bytes=8)


async def test_requests_wait_until_as_many_came_as_are_expected() -> None:
    yard, lane = Yard(), lane_of(wanted=3)
    first, second = yard.add(lane), yard.add(lane)
    assert yard.batches == []
    third = yard.add(lane)
    assert yard.batches == [("m", [first, second, third])]
    assert lane not in yard.gathering
    assert yard.gathering.count == 0


async def test_requests_wait_no_longer_once_the_loop_is_idle() -> None:
    yard, lane = Yard(), lane_of()
    yard.add(lane)
    for _ in range(14):
        yard.loop.turn(0.00001)
    assert yard.batches == []
    yard.loop.turn(0.00001)
    yard.loop.turn(0.00001)
    assert yard.sizes() == [1]
    assert yard.loop.soon == []  # nobody watches an empty yard


async def test_a_turn_that_took_time_has_accepted_something_so_the_loop_is_not_idle() -> None:
    yard, lane = Yard(), lane_of()
    yard.add(lane)
    for _ in range(10):
        for _ in range(14):
            yard.loop.turn(0.00001)
        yard.loop.turn(0.00004)
    assert yard.batches == []
    for _ in range(16):
        yard.loop.turn(0.00001)
    assert yard.sizes() == [1]


async def test_no_request_waits_longer_than_five_milliseconds_however_busy_the_loop_is() -> None:
    yard, lane, later = Yard(), lane_of("early"), lane_of("late")
    yard.add(lane)
    yard.loop.turn(0.001)
    yard.add(later)
    for _ in range(3):
        yard.loop.turn(0.001)
    assert yard.batches == []
    yard.loop.turn(0.00101)
    assert [name for name, _ in yard.batches] == ["early"]
    yard.loop.turn(0.001)
    assert [name for name, _ in yard.batches] == ["early", "late"]


@pytest.mark.parametrize(
    ("max_rows", "row_seconds", "rows", "sizes"),
    [(4, 1e-6, 1, [4, 4]), (7, 1e-6, 3, [2, 2, 2, 2]), (64, 0.000_24, 1, [4, 4])],
    ids=["full", "nearly full", "long enough"],
)
async def test_requests_wait_for_nobody_when_another_like_the_last_does_not_fit(
    max_rows: int, row_seconds: float, rows: int, sizes: list[int]
) -> None:
    yard, lane = Yard(), lane_of(max_rows=max_rows, row_seconds=row_seconds)
    for _ in range(8):
        yard.add(lane, rows)
    assert yard.sizes() == sizes


async def test_what_is_too_large_or_of_another_shape_does_not_fit_beside_the_others() -> None:
    yard, lane = Yard(), lane_of(max_rows=8)
    assert yard.gathering.fits(lane, Feed((), (), 8))
    yard.add(lane, 2)
    assert yard.gathering.fits(lane, Feed((), (), 6))
    assert not yard.gathering.fits(lane, Feed((), (), 7))
    assert not yard.gathering.fits(lane, Feed((), (), 1, "another shape"))


async def test_at_most_32_requests_of_all_models_are_held() -> None:
    yard, lanes = Yard(), [lane_of(name) for name in "abc"]
    for number in range(31):
        yard.add(lanes[number % 3])
    assert yard.gathering.count == 31
    yard.add(lanes[1])
    assert yard.gathering.count == 21  # the model with the most has made room
    assert yard.batches[0][0] == "a"


async def test_of_several_models_one_is_handed_on_in_a_turn_of_the_loop() -> None:
    yard, lanes = Yard(), [lane_of(name) for name in "abc"]
    for lane in lanes:
        yard.add(lane)
    yard.loop.turn(0.006)
    assert [name for name, _ in yard.batches] == ["a"]
    yard.loop.turn(0.001)
    yard.loop.turn(0.001)
    assert [name for name, _ in yard.batches] == ["a", "b", "c"]


async def test_each_wait_that_ends_because_the_loop_would_have_slept_is_told() -> None:
    yard, lane = Yard(), lane_of()
    yard.add(lane)
    yard.loop.turn(0.006)
    assert (yard.idle, len(yard.batches)) == (0, 1)
    yard.add(lane)
    for _ in range(20):
        yard.loop.turn(0.00001)
    assert (yard.idle, len(yard.batches)) == (1, 2)


async def test_a_failure_with_one_model_strands_no_other() -> None:
    yard, lanes = Yard(), [lane_of(name) for name in "abcd"]
    for number in range(31):
        yard.add(lanes[number % 4])
    yard.breaks = {"a", "c"}
    for seconds, is_broken in ((0.006, True), (0.0, False), (0.0, True), (0.0, False)):
        with pytest.raises(RuntimeError) if is_broken else nullcontext():
            yard.loop.turn(seconds)
    assert [name for name, _ in yard.batches] == ["a", "b", "c", "d"]
    assert yard.gathering.count == 0


async def test_after_a_failure_the_others_are_still_watched() -> None:
    yard, broken, lane = Yard(), lane_of("broken"), lane_of("m")
    yard.breaks = {"broken"}
    yard.add(broken)
    yard.loop.turn(0.003)
    yard.add(lane)
    with pytest.raises(RuntimeError):
        yard.loop.turn(0.003)
    yard.loop.turn(0.003)
    assert [name for name, _ in yard.batches] == ["broken", "m"]


async def test_a_request_whose_caller_has_gone_is_no_longer_counted() -> None:
    yard, lane = Yard(), lane_of(wanted=3)
    first, left = yard.add(lane), yard.add(lane)
    assert yard.gathering.discard(left)
    assert not yard.gathering.discard(left)
    second = yard.add(lane)
    assert yard.batches == []
    third = yard.add(lane)
    assert yard.batches == [("m", [first, second, third])]


async def test_the_rows_of_a_request_whose_caller_has_gone_make_room() -> None:
    yard, lane = Yard(), lane_of(max_rows=8)
    yard.add(lane, 2)
    left = yard.add(lane, 2)
    yard.gathering.discard(left)
    assert yard.gathering.fits(lane, Feed((), (), 6))


async def test_when_all_callers_have_gone_nothing_is_left_to_watch() -> None:
    yard, lane = Yard(), lane_of()
    yard.gathering.discard(yard.add(lane))
    assert lane not in yard.gathering
    yard.loop.turn(0.006)
    assert (yard.batches, yard.loop.soon) == ([], [])


async def test_a_run_that_the_loop_may_not_do_yet_waits_and_grows() -> None:
    """Runs of half a millisecond leave the loop half of its time."""
    yard, lane = Yard(), lane_of(wanted=2)
    for _ in range(100):
        lane.quickness.learn(2, 0.0005)
    lane.quickness.budget.spent(0.002, yard.loop.seconds)
    for _ in range(2):
        yard.add(lane)
    yard.loop.turn(0.001)
    assert yard.batches == []
    yard.add(lane)
    yard.add(lane_of("another"))
    yard.loop.turn(0.0009)
    assert yard.batches == []
    yard.loop.turn(0.0002)
    assert [(name, len(requests)) for name, requests in yard.batches] == [("m", 3)]


async def test_a_run_that_the_loop_may_never_do_is_handed_on_after_five_milliseconds() -> None:
    yard, lane = Yard(), lane_of(wanted=2)
    for _ in range(100):
        lane.quickness.learn(2, 0.0005)
    lane.quickness.budget.spent(3600.0, yard.loop.seconds)
    for _ in range(2):
        yard.add(lane)
    yard.loop.turn(0.004)
    assert yard.batches == []
    yard.loop.turn(0.00101)
    assert yard.sizes() == [2]


@pytest.mark.parametrize(("max_rows", "waits"), [(0, False), (1, False), (2, True)])
def test_only_models_that_take_batches_wait_for_others(max_rows: int, waits: bool) -> None:
    lane = lane_of(max_rows=max_rows)
    assert lane.gathers(Feed((), (), 1, is_exact=True)) is waits
    lane.crowd = Crowd()
    for _ in range(4):
        lane.came_alone()
    assert (lane.crowd.wanted > 1) is waits


@pytest.mark.parametrize(("rows", "waits"), [(4, True), (5, False)])
def test_only_requests_of_which_two_fit_wait_for_others(rows: int, waits: bool) -> None:
    assert lane_of(max_rows=8).gathers(Feed((), (), rows, is_exact=True)) is waits


async def test_what_waited_runs_in_the_context_of_no_request() -> None:
    yard, lane = Yard(), lane_of()
    caller = ContextVar("caller", default="nobody")
    seen: list[str] = []
    yard.gathering._hand_on = lambda *taken: seen.append(caller.get())
    caller.set("the first request")
    for turns in ([0.006], [0.001, 0.006]):
        yard.add(lane)
        for seconds in turns:
            yard.loop.turn(seconds)
    assert seen == ["nobody"] * 2


async def test_everything_can_be_taken_out() -> None:
    yard, lanes = Yard(), [lane_of("a"), lane_of("b")]
    held = [yard.add(lane) for lane in lanes]
    assert yard.gathering.clear() == held
    assert yard.gathering.count == 0
    yard.loop.turn(0.006)
    assert (yard.batches, yard.loop.soon) == ([], [])


def test_a_request_that_soon_times_out_does_not_wait() -> None:
    patience = Patience()
    assert patience.allows(None, 10.0)
    assert patience.allows(10.021, 10.0)
    assert not patience.allows(10.019, 10.0)
    assert not patience.allows(9.0, 10.0)
