"""A trainer that was frozen while it published, and the one that took its job over."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from modelrail.client.errors import AlreadyExists
from modelrail_trainer.execution import supervisor as supervision
from modelrail_trainer.handover.artifact import TrainingResult
from modelrail_trainer.jobs.job import Job, StateChange
from modelrail_trainer.jobs.state import JobState
from tests.integration.supervised import FailingStore, Shelf, house_in


class FreezingShelf(Shelf):
    """A registry whose first caller is frozen before its request went out, or after."""

    def __init__(self, *, frozen: str) -> None:
        super().__init__()
        self._frozen = frozen
        self.asked, self.goes_on = asyncio.Event(), asyncio.Event()
        self.bodies: dict[str, bytes] = {}
        self.made_for: dict[str, str] = {}

    async def create_version(self, result: TrainingResult, job: Job, request_id: str) -> str:
        is_first, body = not self.asked.is_set(), job.trainer.encode()
        self.asked.set()
        if is_first and self._frozen == "before":
            await self.goes_on.wait()
        if self.bodies.setdefault(request_id, body) != body:
            raise AlreadyExists("request_id was used for another version")
        version = await super().create_version(result, job, request_id)
        self.made_for[str(job.name)] = version
        if is_first and self._frozen == "after":
            await self.goes_on.wait()
        return version

    async def version_of(self, job: Job) -> str | None:
        return self.made_for.get(str(job.name))


@pytest.mark.parametrize("frozen", ["before", "after"])
async def test_a_publisher_that_was_frozen_and_its_successor_make_one_version(
    postgresql_database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: str
) -> None:
    monkeypatch.setattr(supervision, "_QUEUE_RETRY_SECONDS", 0.05)
    shelf = FreezingShelf(frozen=frozen)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(
                house_in(tmp_path / name, FailingStore(postgresql_database, trainer=name))
            )
            for name in ("first", "second")
        )
        name = await first.create()
        async with asyncio.timeout(120), first.supervisor(shelf):
            await shelf.asked.wait()
            (seen,) = second.store.held_by_others()
            assert (seen.state, seen.committing) == (JobState.REGISTERING, True)
            second.store.take_over(seen.lease, expires=seen.lease_expires)
            async with second.supervisor(shelf):
                job, events = await second.ended(name)
                first.store.calls.clear()
                shelf.goes_on.set()
                # Its write is refused, which it tells nobody.
                while not first.store.calls["set_version"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert first.store.get(name) == job
        assert first.store.events_after(name, 0, limit=100)[0] == events
    states = [e.happening.new for e in events if isinstance(e.happening, StateChange)]
    assert job.state is JobState.SUCCEEDED
    assert list(shelf.versions.values()) == [job.model_version]
    assert shelf.aliases == {"models/line/aliases/production": job.model_version}
    # What stayed with the first is made again only where nothing was published.
    assert (JobState.LOST in states, job.attempt) == {"before": (True, 2), "after": (False, 1)}[
        frozen
    ]
