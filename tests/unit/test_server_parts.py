"""Which parts serve over all workers, as each worker shows it: no processes here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from modelrail_server.standard.health import Health
from modelrail_server.supervision.parts import MergedParts, PartsOfWorker

NAMES = ("a", "b")
WORKERS = (0, 1)


class World:
    """Workers and their supervisor; what one tells another is under way until it is delivered."""

    def __init__(self) -> None:
        self.merged = MergedParts(
            lambda worker, states: self.to_workers[worker].append(
                lambda: self.parts[worker].told(states)
            )
        )
        self.parts: dict[int, PartsOfWorker] = {}
        self.health: dict[int, Health] = {}
        self.own: dict[int, dict[str, bool]] = {}
        self.joined: set[int] = set()
        self.to_workers: dict[int, deque[Callable[[], None]]] = {}
        self.to_supervisor: dict[int, deque[Callable[[], None]]] = {}
        for worker in WORKERS:
            self.start(worker)

    def start(self, worker: int) -> None:
        self.own[worker] = {}
        self.health[worker] = Health()
        self.to_workers[worker], self.to_supervisor[worker] = deque(), deque()

        def say(name: str, serving: bool | None) -> None:
            self.to_supervisor[worker].append(lambda: self.merged.say(worker, name, serving))

        self.parts[worker] = PartsOfWorker(self.health[worker], say)

    def join(self, worker: int) -> None:
        if worker not in self.joined:
            self.joined.add(worker)
            self.to_supervisor[worker].append(lambda: self.merged.join(worker))

    def end(self, worker: int) -> None:
        """A worker ends, and another comes in its place."""
        self.merged.leave(worker)
        self.joined.discard(worker)
        self.start(worker)

    def say(self, worker: int, name: str, serving: bool | None) -> None:
        if serving is None:
            self.own[worker].pop(name, None)
            self.parts[worker].remove(name)
        else:
            self.own[worker][name] = serving
            self.parts[worker].set(name, serving)

    def deliver(self, *, everything: bool) -> None:
        lines = [*self.to_supervisor.values(), *self.to_workers.values()]
        while any(lines):
            for line in lines:
                if line:
                    line.popleft()()
            if not everything:
                return

    def expected(self, name: str) -> bool | None:
        states = [self.own[worker].get(name) for worker in self.joined]
        return None if all(state is None for state in states) else all(states)


STEPS: list[Callable[[World, int, str], None]] = [
    lambda world, worker, name: world.say(worker, name, True),
    lambda world, worker, name: world.say(worker, name, False),
    lambda world, worker, name: world.say(worker, name, None),
    lambda world, worker, name: world.join(worker),
    lambda world, worker, name: world.end(worker),
    lambda world, worker, name: world.deliver(everything=False),
]


@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from(WORKERS), st.sampled_from(NAMES)),
        min_size=10,
    )
)
def test_every_worker_shows_what_all_serve(
    steps: list[tuple[Callable[[World, int, str], None], int, str]],
) -> None:
    world = World()
    for step, worker, name in steps:
        step(world, worker, name)
        # Even while messages are under way nobody is sent to a worker that has not got the part.
        for one, health in world.health.items():
            for part in NAMES:
                assert not health.serving(part) or world.own[one].get(part)
    world.deliver(everything=True)
    for one, health in world.health.items():
        for part in NAMES:
            expected = world.expected(part) if one in world.joined else world.own[one].get(part)
            assert health.serving(part) is expected


def test_a_worker_that_has_not_joined_is_not_counted() -> None:
    world = World()
    world.say(0, "a", True)
    world.join(0)
    world.say(1, "a", False)
    world.deliver(everything=True)
    assert world.health[0].serving("a") is True
    world.join(1)
    world.deliver(everything=True)
    assert [world.health[worker].serving("a") for worker in (0, 1)] == [False, False]
    world.end(1)
    world.deliver(everything=True)
    assert world.health[0].serving("a") is True
