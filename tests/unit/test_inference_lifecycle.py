"""How versions come and go, with a loader that does as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from modelrail_inference.model.definition import (
    LoadedModel,
    LoadError,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature
from modelrail_inference.repository.lifecycle import State
from modelrail_inference.repository.repository import Repository
from modelrail_server.errors import InvalidArgument, NotFound, Unavailable


class Loader:
    """Fails, or waits until it is let go, for the versions that it is told."""

    def __init__(self) -> None:
        self.failing: set[int] = set()
        self.gates: dict[int, threading.Event] = {}
        self.loads = 0
        self.loaded: list[LoadedModel] = []

    def load(self, definition: VersionDefinition) -> LoadedModel:
        self.loads += 1
        if gate := self.gates.get(definition.number):
            assert gate.wait(10)
        if definition.number in self.failing:
            raise LoadError("no good")
        loaded = LoadedModel(
            definition.model, definition.number, Signature((), ()), 0, Provider.CPU, Session()
        )
        self.loaded.append(loaded)
        return loaded

    def freed(self) -> list[int]:
        return [loaded.number for loaded in self.loaded if loaded.session is None]


class Session:
    """Stands for the memory that a loaded file takes."""

    metadata: Mapping[str, str] = {}

    def run(self, inputs: Any, outputs: Any, run: Any) -> list[Any]:
        raise NotImplementedError


def version(number: int, fingerprint: str = "f") -> VersionDefinition:
    return VersionDefinition("m", number, Path("x"), fingerprint)


def rows(repository: Repository) -> list[tuple[int, State, str]]:
    return [(entry.number, entry.state, entry.reason) for entry in repository.index()]


async def test_a_new_version_takes_over_and_the_old_one_is_drained() -> None:
    repository = Repository(Loader())
    await repository.reconcile("m", [version(1)])
    used = repository.acquire("m", "")
    await repository.reconcile("m", [version(2)], reason="replaced")
    assert repository.acquire("m", "").model.number == 2
    assert rows(repository)[0] == (1, State.UNLOADING, "replaced")
    used.release()
    for _ in range(5):
        await asyncio.sleep(0)
    assert rows(repository)[0] == (1, State.UNAVAILABLE, "replaced")


async def test_a_version_that_still_answers_requests_stays_unloading_whatever_comes_next() -> None:
    repository = Repository(Loader())
    await repository.reconcile("m", [version(1)])
    used = repository.acquire("m", "")
    for number in (2, 3):
        await repository.reconcile("m", [version(number)], reason="replaced")
    assert rows(repository)[0] == (1, State.UNLOADING, "replaced")
    await repository.reconcile("m", [])
    assert rows(repository)[0] == (1, State.UNLOADING, "replaced")
    used.release()


async def test_a_version_that_failed_keeps_its_reason_when_another_is_loaded() -> None:
    loader = Loader()
    loader.failing = {1}
    repository = Repository(loader)
    with pytest.raises(LoadError):
        await repository.reconcile("m", [version(1)])
    await repository.reconcile("m", [version(2)], reason="replaced")
    assert rows(repository) == [(1, State.UNAVAILABLE, "no good"), (2, State.READY, "")]


async def test_a_failed_load_leaves_what_serves() -> None:
    loader = Loader()
    loader.failing = {2}
    repository = Repository(loader)
    await repository.reconcile("m", [version(1)])
    with pytest.raises(LoadError, match="version 2: no good"):
        await repository.reconcile("m", [version(2)])
    assert rows(repository) == [(1, State.READY, ""), (2, State.UNAVAILABLE, "no good")]
    assert repository.acquire("m", "").model.number == 1


async def test_the_old_version_answers_while_the_new_one_loads() -> None:
    loader = Loader()
    gate = loader.gates[2] = threading.Event()
    repository = Repository(loader)
    await repository.reconcile("m", [version(1)])
    swap = asyncio.create_task(repository.reconcile("m", [version(2)]))
    while loader.loads < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert rows(repository)[1][1] is State.LOADING
    assert repository.acquire("m", "").model.number == 1
    gate.set()
    await swap
    assert repository.acquire("m", "").model.number == 2


async def test_a_cancelled_load_is_unavailable_and_can_be_tried_again() -> None:
    loader = Loader()
    gate = loader.gates[1] = threading.Event()
    repository = Repository(loader, load_threads=2)
    task = asyncio.create_task(repository.reconcile("m", [version(1)]))
    while loader.loads < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rows(repository) == [(1, State.UNAVAILABLE, "the load was cancelled")]
    gate.set()
    await repository.reconcile("m", [version(1)])
    assert rows(repository) == [(1, State.READY, "")]


async def test_a_cancelled_load_frees_the_versions_that_were_there_already() -> None:
    loader = Loader()
    gate = loader.gates[2] = threading.Event()
    repository = Repository(loader)
    task = asyncio.create_task(repository.reconcile("m", [version(1), version(2)]))
    while loader.loads < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert loader.freed() == [1]
    gate.set()
    await repository.close()
    assert loader.freed() == [1, 2]


async def test_a_load_that_hangs_is_given_up_and_holds_up_no_other() -> None:
    loader = Loader()
    gate = loader.gates[2] = threading.Event()
    repository = Repository(loader, load_threads=1, load_timeout_seconds=0.05)
    await repository.reconcile("m", [version(1)])
    with pytest.raises(LoadError, match=r"version 2: .* longer than 0.05 s"):
        await repository.reconcile("m", [version(2)])
    number, state, reason = rows(repository)[1]
    assert (number, state) == (2, State.UNAVAILABLE)
    assert "cannot be stopped" in reason
    assert [ready.number for ready in repository.ready_versions("m")] == [1]
    # With as many threads lost as loads may run, more would only fill the memory.
    with pytest.raises(LoadError, match="restart the service"):
        await repository.reconcile("m", [version(3)])
    gate.set()
    async with asyncio.timeout(10):
        while repository.ready_versions("m")[-1].number != 3:
            await asyncio.sleep(0)
            with suppress(LoadError):
                await repository.reconcile("m", [version(3)])
    assert rows(repository)[1][1] is State.UNAVAILABLE, "what came late is not served"
    await repository.close()


async def test_a_load_that_hangs_does_not_hold_up_the_end() -> None:
    loader = Loader()
    gate = loader.gates[1] = threading.Event()
    repository = Repository(loader, load_timeout_seconds=0.05)
    with pytest.raises(LoadError):
        await repository.reconcile("m", [version(1)])
    async with asyncio.timeout(5):
        await repository.close()
    gate.set()


async def test_loads_of_different_models_take_turns() -> None:
    loader = Loader()
    gate = loader.gates[1] = threading.Event()
    repository = Repository(loader, load_threads=2)
    models = [VersionDefinition(name, 1, Path("x"), "f") for name in "abc"]
    tasks = [asyncio.create_task(repository.reconcile(m.model, [m])) for m in models]
    while loader.loads < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert loader.loads == 2
    gate.set()
    await asyncio.gather(*tasks)
    assert loader.loads == 3


async def test_an_unchanged_version_is_not_loaded_again_and_a_changed_one_is() -> None:
    loader = Loader()
    repository = Repository(loader)
    for fingerprint in ("a", "a", "b"):
        await repository.reconcile("m", [version(1, fingerprint)])
    assert loader.loads == 2


async def test_a_name_is_routed_by_the_rules_of_the_protocol() -> None:
    repository = Repository(Loader())
    await repository.reconcile("m", [version(1), version(2)])
    assert repository.acquire("m", "1").model.number == 1
    assert repository.acquire("m", "").model.number == 2
    with pytest.raises(NotFound):
        repository.acquire("m", "3")
    with pytest.raises(InvalidArgument):
        repository.acquire("m", "٣")
    await repository.reconcile("m", [])
    with pytest.raises(Unavailable, match="not at ready state: UN"):
        repository.acquire("m", "")


async def test_a_run_that_does_not_end_does_not_hold_up_the_end() -> None:
    repository = Repository(Loader())
    await repository.reconcile("m", [version(1)])
    repository.acquire("m", "")
    async with asyncio.timeout(5):
        await repository.close(grace_seconds=0.05)


async def test_a_load_that_hangs_is_not_started_a_second_time() -> None:
    loader = Loader()
    gate = loader.gates[1] = threading.Event()
    repository = Repository(loader, load_threads=2, load_timeout_seconds=0.05)
    for _ in range(3):
        with pytest.raises(TransientLoadError, match=r"took longer than 0.05 s"):
            await repository.reconcile("m", [version(1)])
    assert loader.loads == 1
    gate.set()
    await repository.close()


async def test_a_removed_model_is_told_of_unless_it_serves() -> None:
    told: list[tuple[str, bool | None]] = []
    repository = Repository(Loader(), on_change=lambda name, ready: told.append((name, ready)))
    await repository.reconcile("m", [version(1)])
    repository.remove("m")
    await repository.reconcile("m", [])
    repository.remove("m")
    assert told == [("m", True), ("m", False), ("m", None)]
    assert rows(repository) == []
    await repository.close()
