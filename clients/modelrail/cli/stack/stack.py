"""Registry, trainer and inference on this machine, as one thing that starts, survives and stops."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelrail.cli.command import Failure
from modelrail.cli.console import note
from modelrail.cli.session import Session, address_file, run_directory
from modelrail.cli.stack.orphans import adopting, end_orphans
from modelrail.cli.stack.process import Addresses, ServiceProcess, last_words
from modelrail.client.channel import open_channel
from modelrail.client.errors import mapped_errors
from modelrail.client.inference import AsyncInferenceClient

_MAXIMUM_RESTARTS = 5
_STOP_GRACE_SECONDS = 15.0
_HEALTH_TIMEOUT_SECONDS = 30.0
_RESTART_DELAY_SECONDS = 0.1
_FREE_PORT = "127.0.0.1:0"

_HEALTH_NAMES = {
    "registry": "modelrail.registry.v1.RegistryService",
    "trainer": "modelrail.trainer.v1.TrainerService",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """What to start and where."""

    data_dir: Path
    serve: Sequence[str]
    """What inference serves: `MODEL@ALIAS`, or `*@ALIAS` for every model that has or gets it."""
    data_roots: Sequence[Path] = ()
    """Folders whose files the trainer may read."""
    object_roots: Sequence[str] = ()
    """Buckets, or folders in some, whose objects the trainer may read."""
    user_code: Sequence[Path] = ()
    """Folders whose Python modules jobs may name."""
    grpc_addresses: Mapping[str, str] = field(default_factory=dict)
    """Address of each service; a free port where none is given."""
    metrics_addresses: Mapping[str, str] = field(default_factory=dict)

    def grpc(self, service: str) -> str:
        """Returns the address to ask for."""
        return self.grpc_addresses.get(service, _FREE_PORT)

    def metrics(self, service: str) -> str:
        """Returns the metrics address to ask for."""
        return self.metrics_addresses.get(service, _FREE_PORT)


class Stack:
    """An async context manager: the three services serve inside of it, and none is left after it.

    A service that dies is started again on its old addresses, up to five times in all.

    Args:
        plan: What to start and where.
        on_start: Told the name of each service that serves.

    Raises:
        Failure: Another stack uses the data directory, or a service does not start.
    """

    def __init__(self, plan: StackPlan, *, on_start: Callable[[str], None] | None = None) -> None:
        self._plan = plan
        self._on_start = on_start or (lambda _: None)
        self._services: dict[str, ServiceProcess] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._restarts = 0
        self._cleanup = ExitStack()
        self._failed: asyncio.Future[None] | None = None

    @property
    def addresses(self) -> Mapping[str, Addresses]:
        """Addresses of each service."""
        return {
            name: service.addresses
            for name, service in self._services.items()
            if service.addresses is not None
        }

    @property
    def session(self) -> Session:
        """A session that talks to these services, whatever the environment says."""
        return Session(
            data_dir=self._plan.data_dir,
            addresses={name: addresses.grpc for name, addresses in self.addresses.items()},
        )

    def log(self, service: str) -> Path:
        """Returns the log file of a service."""
        return self._plan.data_dir / "logs" / f"{service}.log"

    async def wait(self) -> None:
        """Waits until the stack cannot go on.

        Raises:
            Failure: A service died too often.
        """
        if self._failed is None:
            raise ValueError("the stack was not started")
        await asyncio.shield(self._failed)

    async def __aenter__(self) -> Self:
        self._failed = asyncio.get_running_loop().create_future()
        self._cleanup.enter_context(_owning(self._plan.data_dir))
        try:
            self._cleanup.enter_context(adopting())
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        registry = await self._start_service("registry")
        at = f"--registry={registry.grpc}"
        targets = [f"--serve={target}" for target in self._plan.serve]
        opened = [
            *(f"--data-root={root.resolve()}" for root in self._plan.data_roots),
            *(f"--object-root={root}" for root in self._plan.object_roots),
            *(f"--user-code={root.resolve()}" for root in self._plan.user_code),
        ]
        starting = [
            asyncio.create_task(self._start_service("trainer", at, *opened)),
            asyncio.create_task(self._start_service("inference", at, *targets)),
        ]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
            await asyncio.wait(starting)

    async def _start_service(self, name: str, *arguments: str) -> Addresses:
        data_dir = (self._plan.data_dir / name).resolve()
        service = ServiceProcess(
            name,
            [f"--data-dir={data_dir}", *arguments],
            address_file=address_file(self._plan.data_dir, name).resolve(),
            log=self.log(name).resolve(),
        )
        self._services[name] = service
        addresses = await service.start(
            grpc_address=self._plan.grpc(name), metrics_address=self._plan.metrics(name)
        )
        await _wait_for_health(name, addresses.grpc)
        self._watchers.append(asyncio.create_task(self._keep_alive(service)))
        self._on_start(name)
        return addresses

    async def _keep_alive(self, service: ServiceProcess) -> None:
        while True:
            status = await service.wait()
            self._restarts += 1
            if self._restarts > _MAXIMUM_RESTARTS:
                self._fail(
                    Failure(
                        f"{service.service} ended with status {status}, and services were started"
                        f" again {_MAXIMUM_RESTARTS} times already (log: {service.log})\n"
                        f"{last_words(service.log)}"
                    )
                )
                return
            note(
                f"{service.service} ended unexpectedly (status {status}): starting it again",
                style="yellow",
            )
            await asyncio.sleep(_RESTART_DELAY_SECONDS)
            try:
                await service.start(grpc_address=_FREE_PORT, metrics_address=_FREE_PORT)
            except Failure as failure:
                self._fail(failure)
                return

    def _fail(self, failure: Failure) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(failure)

    async def _stop(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        if self._watchers:
            await _to_the_end(asyncio.gather(*self._watchers, return_exceptions=True))
        # In the order of dependence, so that none misses another while it still works.
        patience = _STOP_GRACE_SECONDS
        try:
            for name in ("inference", "trainer", "registry"):
                if name in self._services:
                    stopping = self._services[name].stop(patience)
                    if not await _to_the_end(asyncio.ensure_future(stopping)):
                        patience = 0.0
            ended = await end_orphans(min(patience, 5.0))
            if ended:
                note(f"ended {ended} training job process(es) that were still running")
        finally:
            if self._failed is not None and self._failed.done():
                self._failed.exception()  # Seen or not, it is no warning at exit.
            self._cleanup.close()


async def _to_the_end(work: asyncio.Future[Any]) -> bool:
    """Awaits `work` whatever happens; a cancellation is passed on to it, and False is returned."""
    patient = True
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            patient = False
            work.cancel()
    with suppress(asyncio.CancelledError):
        work.result()
    return patient


async def _wait_for_health(service: str, address: str) -> None:
    if service == "inference":
        # Ready is more than this: it waits for models, which may not exist yet.
        async with AsyncInferenceClient(address, timeout_seconds=_HEALTH_TIMEOUT_SECONDS) as client:
            if not await client.server_live():
                raise Failure("inference answers that it is not live")
        return
    channel = open_channel(address)
    health: Any = health_pb2_grpc.HealthStub(channel)
    try:
        with mapped_errors():
            response = await health.Check(
                health_pb2.HealthCheckRequest(service=_HEALTH_NAMES[service]),
                timeout=_HEALTH_TIMEOUT_SECONDS,
            )
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            raise Failure(f"{service} answers that it is not serving")
    finally:
        await channel.close()


@contextmanager
def _owning(data_dir: Path) -> Iterator[None]:
    """Holds the data directory for this stack alone."""
    run_directory(data_dir).mkdir(parents=True, exist_ok=True)
    path = run_directory(data_dir) / "stack.lock"
    with path.open("a+") as lock:
        try:
            # The services inherit no descriptors, so the lock ends with this process at the latest.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            raise Failure(
                f"another modelrail (process {owner or 'unknown'}) runs the services in {data_dir}:"
                " stop it first, or choose another folder with --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
