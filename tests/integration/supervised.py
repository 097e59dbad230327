"""A supervisor with gated workers, a database that fails as a test says, a registry in memory."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from sqlalchemy import URL

from modelrail.client.errors import Unavailable as RegistryUnavailable
from modelrail.names import ModelAliasName, ModelName, ModelVersionName, TrainingJobName
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.local import LocalExecutor
from modelrail_trainer.execution.publication.publisher import Publisher
from modelrail_trainer.execution.publication.registry import VersionRegistry
from modelrail_trainer.execution.supervisor import Supervisor
from modelrail_trainer.handover.artifact import ResultFile, TrainingResult
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import (
    Job,
    JobEvent,
    NewJob,
)
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.metrics import TrainerMetrics
from modelrail_trainer.objects.fetching import ObjectFetcher
from modelrail_trainer.objects.named import NamedObjects
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.spec import Publication
from modelrail_trainer.threads import Threads
from tests.gated_worker import gated_worker, open_gate

NEW = NewJob(b"specification", Publication(model="line", alias="production", description=""))


class FailingStore(JobStore):
    """A job store whose methods fail as a test says; what it does not name works."""

    def __init__(self, place: Path | URL, *, trainer: str = "trainer") -> None:
        super().__init__(open_database(place), max_queued_jobs=20, trainer=trainer)
        self.calls: Counter[str] = Counter()
        # Decides by the number of the call, from 1, whether it fails and with what.
        self.before: dict[str, Callable[[int], Exception | None]] = {}
        self.after: dict[str, Callable[[int], Exception | None]] = {}
        self.failed = threading.Semaphore(0)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or not callable(value) or name == "close":
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            number = self.calls[name]
            self._fail(self.before, name, number)
            result = value(*args, **kwargs)
            self._fail(self.after, name, number)
            return result

        return call

    def _fail(
        self, plan: dict[str, Callable[[int], Exception | None]], name: str, number: int
    ) -> None:
        error = plan[name](number) if name in plan else None
        if error is not None:
            self.failed.release()
            raise error

    def _failed_times(self, times: int) -> None:
        for _ in range(times):
            assert self.failed.acquire(timeout=60)

    async def until_failed(self, times: int) -> None:
        await asyncio.to_thread(self._failed_times, times)


@dataclass
class Shelf:
    """A registry in memory, which can be out of reach."""

    reachable: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    broken_uploads: int = 0

    async def probe(self, model: ModelName) -> None:
        if not self.reachable:
            raise RegistryUnavailable("connection refused")

    async def upload(self, content: BufferedReader, file: ResultFile) -> None:
        if self.broken_uploads:
            self.broken_uploads -= 1
            raise OSError(5, "Input/output error")

    async def version_of(self, job: Job) -> str | None:
        return None

    async def create_version(self, result: TrainingResult, job: Job, request_id: str) -> str:
        return self.versions.setdefault(
            request_id, f"models/line/versions/{len(self.versions) + 1}"
        )

    async def set_alias(
        self, alias: ModelAliasName, version: ModelVersionName, request_id: str
    ) -> None:
        self.aliases[str(alias)] = str(version)


@dataclass
class House:
    """One data directory, on which supervisors come and go."""

    path: Path
    store: FailingStore
    threads: Threads
    book: JobBook

    async def look_again(self, job: Job, result: TrainingResult) -> TrainingResult:
        """Believes everything: other tests look."""
        return result

    @asynccontextmanager
    async def supervisor(self, registry: VersionRegistry) -> AsyncIterator[Supervisor]:
        directories = JobDirectories(self.path / "jobs")
        metrics = TrainerMetrics(CollectorRegistry(), self.store.count_by_state)
        publisher = Publisher(
            registry=registry,
            book=self.book,
            directories=directories,
            look_again=self.look_again,
            threads=self.threads,
            metrics=metrics,
        )
        executor = LocalExecutor(
            (sys.executable, str(self.path / "worker.py")),
            threads_per_job=1,
            limits=JobLimits(file_bytes=1 << 24),
            environ=os.environ,
            readable=[self.gate],
        )
        async with Supervisor(
            book=self.book,
            executor=executor,
            fetcher=ObjectFetcher(
                lambda spec: NamedObjects(),
                ObjectRoots(()),
                self.threads,
                max_objects=1,
                max_bytes=1,
            ),
            directories=directories,
            publisher=publisher,
            threads=self.threads,
            metrics=metrics,
            max_running_jobs=1,
            stop_grace_seconds=10.0,
            poll_seconds=0.02,
        ) as supervisor:
            yield supervisor

    async def create(self) -> TrainingJobName:
        return (await self.book.read(self.store.create, NEW)).name

    async def until(
        self, name: TrainingJobName, is_it: Callable[[JobEvent], bool]
    ) -> list[JobEvent]:
        events = []
        async for event in self.book.watch(name, 0, asyncio.Event()):
            events.append(event)
            if is_it(event):
                break
        return events

    async def ended(self, name: TrainingJobName) -> tuple[Job, list[JobEvent]]:
        events = await self.until(name, lambda _: False)
        return self.store.get(name), events

    def model(self, name: TrainingJobName) -> Path:
        return self.path / "jobs" / name.training_job / "model.onnx"

    @property
    def gate(self) -> Path:
        """Where the workers stop while there is a pipe."""
        return self.path / "gate"

    def close_gate(self) -> None:
        os.mkfifo(self.gate)

    async def open_gate(self) -> None:
        """Lets the worker go on, once it stands at the gate."""
        await asyncio.to_thread(open_gate, self.gate)


@contextmanager
def house_in(folder: Path, store: FailingStore) -> Iterator[House]:
    """Makes a house in a folder, whose jobs gated workers run, and closes its store in the end."""
    (folder / "jobs").mkdir(parents=True)
    (folder / "worker.py").write_text(gated_worker(folder / "gate"))
    threads = Threads()
    try:
        yield House(folder, store, threads, JobBook(store, threads))
    finally:
        threads.close()
        store.close()
