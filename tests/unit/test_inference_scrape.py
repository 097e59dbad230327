"""A scrape, on a thread of its own, while the event loop loads and unloads.

Threads take turns between bytecode instructions, and also in finalizers that a garbage collection
runs in the midst of one. So a change is made at each of these points, one after the other.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from modelrail_inference.model.definition import LoadedModel, VersionDefinition
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature
from modelrail_inference.repository.lifecycle import Model, Serving
from modelrail_inference.repository.repository import Repository

_KEPT_TUPLES = 10_000


class Loader:
    """Loads nothing at once."""

    def load(self, definition: VersionDefinition) -> LoadedModel:
        return LoadedModel(
            definition.model, definition.number, Signature((), ()), 0, Provider.CPU, session=None
        )


def definition(name: str, number: int = 1) -> VersionDefinition:
    return VersionDefinition(name, number, Path("x"), "f")


async def loaded(*names: str) -> Repository:
    repository = Repository(Loader())
    for name in names:
        await repository.reconcile(name, [definition(name)])
    return repository


def unload(repository: Repository, name: str) -> None:
    """Unloads a model, which waits for nothing; an unknown one becomes known."""
    with pytest.raises(StopIteration):
        repository.reconcile(name, ()).send(None)


@contextmanager
def before_instruction(number: int, change: Callable[[], None]) -> Iterator[list[int]]:
    """Makes a change before one bytecode instruction; yields how many there were."""
    seen = [0]

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            if seen[0] == number:
                change()
            seen[0] += 1
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        yield seen
    finally:
        sys.settrace(before)


@contextmanager
def at_each_collection(change: Callable[[], None]) -> Iterator[None]:
    """Makes a change whenever the garbage collector starts, and lets it start often."""

    def begin(phase: str, details: dict[str, int]) -> None:
        if phase == "start":
            change()

    thresholds = gc.get_threshold()
    # The interpreter keeps used tuples for later, which then need no allocation.
    taken = [(number, number) for number in range(_KEPT_TUPLES)]
    gc.callbacks.append(begin)
    gc.set_threshold(1)
    try:
        yield
    finally:
        taken.clear()
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(begin)


async def test_a_model_that_goes_at_any_moment_of_a_scrape_does_not_disturb_it() -> None:
    for number in count():
        repository = await loaded("a", "b")

        def go(repository: Repository = repository) -> None:
            unload(repository, "b")

        with before_instruction(number, go) as instructions:
            names = [model.model for model in repository.serving()]
        assert names in (["a"], ["a", "b"])
        if number >= instructions[0]:
            break
    assert number > 10
    assert names == ["a", "b"], "nothing was changed the last time"


async def test_models_that_come_during_a_scrape_do_not_disturb_it() -> None:
    names = [f"m{number}" for number in range(20)]
    repository = await loaded(*names)
    new = count()
    with at_each_collection(lambda: unload(repository, f"new {next(new)}")):
        shown = [model.model for model in repository.serving()]
    assert next(new) > 0
    assert shown == sorted(names)


async def test_versions_that_come_during_a_scrape_do_not_disturb_it() -> None:
    model = Model("m")
    for number in range(20):
        loaded_model = Loader().load(definition("m", number))
        model.version(definition("m", number)).become_ready(Serving(loaded_model), "f")
    new = count(20)

    def come() -> None:
        model.version(definition("m", next(new)))

    with at_each_collection(come):
        shown = [version.number for version in model.ready()]
    assert next(new) > 20
    assert shown == list(range(20))
