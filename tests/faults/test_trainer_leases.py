"""Real trainers on one real PostgreSQL: killed, frozen, and taken over from."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from sqlalchemy import URL

from modelrail.client.errors import NotFound
from modelrail.client.registry import AsyncRegistryClient
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.trainer.v1 import trainer_pb2 as pb
from tests.faults.test_trainer_kill import SERVICE, SPEC, WORKER, Running, _service
from tests.faults.trainers import job_processes
from tests.postgresql import PASSWORD

Job = pb.TrainingJob
_SECONDS = 60.0
# Each trainer's worker has a gate of its own.
_GATE = 'directory.parent.parent.parent / "gate"'


@dataclass
class Site:
    """A registry and a database, and trainers that share them."""

    path: Path
    url: URL
    registry: AsyncRegistryClient

    @asynccontextmanager
    async def trainer(self, name: str, *, lease_seconds: float = 3.0) -> AsyncIterator[Running]:
        address = f"unix:{self.path}/{name}.sock"
        place = f"postgresql://modelrail@/{self.url.database}?host={self.url.query['host']}"
        async with (
            _service(
                *(str(self.path / "service.py"), str(self.path / "worker.py")),
                *("--grpc-address", address, "--data-dir", str(self.path / name)),
                *("--registry", f"unix:{self.path}/r.sock", "--cancel-grace-seconds", "20"),
                *("--job-readable-paths", str(self.path / f"gate-{name}")),
                *("--database-url", place, "--lease-seconds", str(lease_seconds)),
                *("--database-password-file", str(self.path / "password")),
                address=address,
            ) as process,
            AsyncTrainerClient(address) as client,
        ):
            yield Running(process, client)

    async def open_gate(self, name: str) -> None:
        gate = self.path / f"gate-{name}"
        await asyncio.to_thread(lambda: gate.open("wb").close())

    def workers(self, name: str) -> list[psutil.Process]:
        return job_processes(self.path / name / "jobs")

    async def versions(self) -> list[str]:
        try:
            return [v.name async for v in self.registry.list_model_versions("models/line")]
        except NotFound:
            return []


@pytest.fixture
async def site(tmp_path: Path, postgresql_database: URL) -> AsyncIterator[Site]:
    (tmp_path / "service.py").write_text(SERVICE)
    assert _GATE in WORKER
    (tmp_path / "worker.py").write_text(
        WORKER.replace(_GATE, 'directory.parents[2] / f"gate-{directory.parents[1].name}"')
    )
    (tmp_path / "password").write_text(PASSWORD)
    for name in ("one", "two"):
        os.mkfifo(tmp_path / f"gate-{name}")
    address = f"unix:{tmp_path}/r.sock"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            _service(
                *("-m", "modelrail_registry", "--grpc-address", address),
                *("--data-dir", str(tmp_path / "registry")),
                address=address,
            )
        )
        client = await stack.enter_async_context(AsyncRegistryClient(address))
        site = Site(tmp_path, postgresql_database, client)
        yield site
        for name in ("one", "two"):
            for worker in site.workers(name):
                worker.kill()


async def _until_event(
    client: AsyncTrainerClient, name: str, is_it: Callable[[pb.TrainingJobEvent], bool]
) -> None:
    async with asyncio.timeout(_SECONDS):
        async for event in client.watch_job(name):
            if is_it(event):
                return
    raise AssertionError("the job ended before the event")


async def _history(client: AsyncTrainerClient, name: str) -> list[pb.TrainingJobEvent]:
    async with asyncio.timeout(_SECONDS):
        events = [event async for event in client.watch_job(name)]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events


def _states(events: list[pb.TrainingJobEvent]) -> list[str]:
    return [
        Job.State.Name(event.state_change.new_state).removeprefix("STATE_")
        for event in events
        if event.HasField("state_change")
    ]


def _is_report(event: pb.TrainingJobEvent) -> bool:
    return event.HasField("metric_report")


_LIFE = ("PREPARING", "RUNNING", "EXPORTING", "REGISTERING", "SUCCEEDED")


async def test_a_killed_trainer_on_postgresql_adopts_its_job_again(site: Site) -> None:
    async with site.trainer("one") as trainer:
        created = await trainer.client.create_job(SPEC)
        await _until_event(trainer.client, created.name, _is_report)
        before = await trainer.client.get_job(created.name)
        (worker,) = site.workers("one")
        await trainer.end(signal.SIGKILL)
    assert site.workers("one") == [worker]
    async with site.trainer("one") as trainer:
        held = await trainer.client.get_job(created.name)
        assert held.trainer == before.trainer != ""
        await site.open_gate("one")
        events = await _history(trainer.client, created.name)
        job = await trainer.client.get_job(created.name)
        assert await trainer.end(signal.SIGTERM) == 0
    assert (job.state, job.attempt, job.trainer) == (Job.STATE_SUCCEEDED, 1, "")
    assert _states(events) == ["QUEUED", *_LIFE]
    assert await site.versions() == [job.model_version]
    assert not (site.path / "one" / "trainer.sqlite3").exists()


async def test_a_trainer_that_was_frozen_past_its_lease_changes_nothing_any_more(
    site: Site,
) -> None:
    async with site.trainer("one") as one, site.trainer("two") as two:
        created = await one.client.create_job(SPEC)
        await _until_event(one.client, created.name, _is_report)
        owner, other = (one, two), ("one", "two")
        if not site.workers("one"):
            owner, other = (two, one), ("two", "one")
        (stale_worker,) = site.workers(other[0])
        first = await owner[1].client.get_job(created.name)
        owner[0].process.send_signal(signal.SIGSTOP)
        try:
            await _until_event(
                owner[1].client,
                created.name,
                lambda event: event.state_change.new_state == Job.STATE_LOST,
            )
            await site.open_gate(other[1])
            events = await _history(owner[1].client, created.name)
            assert stale_worker.is_running()
        finally:
            owner[0].process.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(psutil.wait_procs, [stale_worker], _SECONDS) == (
            [stale_worker],
            [],
        )
        job = await owner[0].client.get_job(created.name)
        # The stale one works on: it has only let go of the one job.
        again = await owner[0].client.create_job(SPEC)
        await asyncio.gather(*map(site.open_gate, await _gates_in_use(site, 1)))
        await _history(owner[0].client, again.name)
        assert await _history(owner[0].client, created.name) == events
        second = await owner[0].client.get_job(again.name)
    assert (job.state, job.attempt) == (Job.STATE_SUCCEEDED, 2)
    assert _states(events) == ["QUEUED", "PREPARING", "RUNNING", "LOST", "QUEUED", *_LIFE]
    (lost,) = (e.state_change for e in events if e.state_change.new_state == Job.STATE_LOST)
    assert lost.error.reason == pb.JobError.REASON_NODE_LOST
    assert first.trainer in lost.error.message
    assert sorted(await site.versions()) == sorted([job.model_version, second.model_version])


async def test_a_result_of_a_trainer_that_was_frozen_is_not_published_while_another_works_on_it(
    site: Site,
) -> None:
    async with site.trainer("one") as one, site.trainer("two") as two:
        created = await one.client.create_job(SPEC)
        await _until_event(one.client, created.name, _is_report)
        owner, other = (one, two), ("one", "two")
        if not site.workers("one"):
            owner, other = (two, one), ("two", "one")
        owner[0].process.send_signal(signal.SIGSTOP)
        try:
            # The process that nobody follows comes to its end, with a result and unread events.
            await site.open_gate(other[0])
            await _gates_in_use(site, 0)
            await _until_state(owner[1].client, created.name, Job.STATE_LOST)
            await _until_running_again(owner[1].client, created.name)
        finally:
            owner[0].process.send_signal(signal.SIGCONT)
        # Only the stale one has a place for another job, once it has let go of the first.
        again = await owner[0].client.create_job(SPEC)
        await _until_event(owner[0].client, again.name, _is_report)
        assert len(site.workers(other[0])) == len(site.workers(other[1])) == 1
        job = await owner[1].client.get_job(created.name)
        assert (job.state, job.attempt) == (Job.STATE_RUNNING, 2)
        assert await site.versions() == []
        await site.open_gate(other[1])
        events = await _history(owner[1].client, created.name)
        assert _states(events) == ["QUEUED", "PREPARING", "RUNNING", "LOST", "QUEUED", *_LIFE]
        epochs = [event.metric_report.metrics[0].epoch for event in events if _is_report(event)]
        assert epochs == [1, 1, 2]  # the second of the first attempt came too late
        await site.open_gate(other[0])
        await _history(owner[0].client, again.name)
    assert len(await site.versions()) == 2


async def _until_state(client: AsyncTrainerClient, name: str, state: pb.TrainingJob.State) -> None:
    await _until_event(client, name, lambda event: event.state_change.new_state == state)


async def _until_running_again(client: AsyncTrainerClient, name: str) -> None:
    """Returns when the second attempt has told of an epoch."""
    reports = 0

    def is_second(event: pb.TrainingJobEvent) -> bool:
        nonlocal reports
        reports += _is_report(event)
        return reports == 2

    await _until_event(client, name, is_second)


async def _gates_in_use(site: Site, count: int) -> list[str]:
    names: list[str] | None = None
    async with asyncio.timeout(_SECONDS):
        while names is None or len(names) != count:
            await asyncio.sleep(0.05)  # Processes tell nobody that they began.
            names = [name for name in ("one", "two") if site.workers(name)]
    return names


async def test_a_lost_job_goes_on_from_its_checkpoints_in_a_shared_folder(site: Site) -> None:
    (site.path / "shared").mkdir()
    for trainer in ("one", "two"):
        (site.path / trainer).mkdir()
        (site.path / trainer / "jobs").symlink_to(site.path / "shared")
    async with site.trainer("one") as one:
        created = await one.client.create_job(SPEC)
        await _until_event(one.client, created.name, _is_report)
        (worker,) = site.workers("one")
        await one.end(signal.SIGKILL)
        worker.kill()
    directory = site.path / "shared" / created.name.removeprefix("trainingJobs/")
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "newest").write_text("weights")
    async with site.trainer("two") as two:
        await _until_event(
            two.client,
            created.name,
            lambda event: event.state_change.new_state == Job.STATE_LOST,
        )
        await _gates_in_use(site, 1)
        assert (directory / "checkpoints" / "newest").read_text() == "weights"
        await site.open_gate("two")
        events = await _history(two.client, created.name)
    assert _states(events)[-6:] == ["QUEUED", *_LIFE]
    assert len(await site.versions()) == 1


async def test_a_wish_that_is_made_at_another_trainer_reaches_the_owner(site: Site) -> None:
    async with site.trainer("one") as one:
        created = await one.client.create_job(SPEC)
        await _until_event(one.client, created.name, _is_report)
        async with site.trainer("two") as two:
            await two.client.cancel_job(created.name)
            events = await _history(two.client, created.name)
            assert site.workers("one") == []
    assert _states(events)[-2:] == ["CANCELLING", "CANCELLED"]


async def test_a_cancelled_job_whose_trainer_is_gone_is_settled_by_another_and_its_process_ended(
    site: Site,
) -> None:
    async with site.trainer("one") as one:
        created = await one.client.create_job(SPEC)
        await _until_event(one.client, created.name, _is_report)
        await one.end(signal.SIGKILL)
    async with site.trainer("two") as two:
        cancelled = await two.client.cancel_job(created.name)
        assert cancelled.state == Job.STATE_CANCELLING
        events = await _history(two.client, created.name)
    assert len(site.workers("one")) == 1
    async with site.trainer("one"):
        assert site.workers("one") == []
    assert _states(events)[-2:] == ["CANCELLING", "CANCELLED"]
