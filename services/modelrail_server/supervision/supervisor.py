"""Starts workers on one port, keeps their number, and shows them as one server.

On the first SIGTERM or SIGINT every worker drains, and the supervisor exits with status 0 when all
have ended. A second signal kills them, and the status is 128 + signal. The first worker starts
alone: what is wrong with the configuration is then said once, and ends everything. When all serve,
one process more is started, the spare, which takes the place of a worker that ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelrail_server.address import Address, BindError
from modelrail_server.address_file import remove_address_file, write_address_file
from modelrail_server.config import ServerConfig
from modelrail_server.exit_status import run_to_exit_status
from modelrail_server.observability.logs import configure_logging
from modelrail_server.observability.scrape import MetricsServer
from modelrail_server.supervision.figures import Figures
from modelrail_server.supervision.held_port import HeldPort
from modelrail_server.supervision.parts import MergedParts, PartStates
from modelrail_server.supervision.restarts import Restarts
from modelrail_server.supervision.siblings import Siblings
from modelrail_server.supervision.spare import Spare
from modelrail_server.supervision.worker_process import WorkerProcess

__all__ = ["supervise"]

_log = structlog.get_logger()

_METRICS_SECONDS = 1.0
_COLLECT_SECONDS = 3.0
_END_SECONDS = 30.0
"""For a worker to end after its drain and its grace."""


def supervise(
    config: ServerConfig,
    *,
    service: str,
    command: Sequence[str],
    workers: int,
    heartbeat_timeout_seconds: float,
) -> int:
    """Runs workers until a signal ends them, and returns the exit status of the process.

    Args:
        config: The settings, of which the workers get their own copy by flags and environment.
        service: Short name, like `inference`.
        command: Program and arguments of a worker, which calls `find_parent`.
        workers: Number of workers.
        heartbeat_timeout_seconds: A worker that is not heard of for so long is replaced.

    Returns:
        0 after a signal; 1 if an address is taken; that of the first worker if it cannot start.
    """

    async def main() -> int:
        return await _Supervisor(config, service, command, workers, heartbeat_timeout_seconds).run()

    configure_logging(config.log_level, service=service)
    return run_to_exit_status(main, service=service)


class _Supervisor(Collector):
    def __init__(
        self,
        config: ServerConfig,
        service: str,
        command: Sequence[str],
        workers: int,
        heartbeat_timeout_seconds: float,
    ) -> None:
        self._config = config
        self._service = service
        self._count = workers
        self._siblings = Siblings(self._followed)
        self._figures = Figures(self._siblings)
        self._parts = MergedParts(self._tell_parts)
        self._restarts = 0
        self._started = False
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[int] = self._loop.create_future()
        self._served = [asyncio.Event() for _ in range(workers)]
        self._all_serve = asyncio.Event()
        self._start_process = partial(
            WorkerProcess.start, command, heartbeat_timeout_seconds=heartbeat_timeout_seconds
        )
        self._spare = Spare(self._start_process, self._all_serve)
        self._keepers: list[asyncio.Task[None]] = []
        self._grpc_address = ""

    async def run(self) -> int:
        """Serves until a signal comes or the first start fails; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        held = HeldPort(Address.parse(self._config.grpc_address))
        self._grpc_address = str(held.address)
        try:
            metrics = self._start_metrics()
            try:
                return await self._run_workers(str(metrics.address))
            finally:
                # Its threads ask this event loop, which must not wait for them.
                await asyncio.to_thread(metrics.close)
        finally:
            held.close()
            remove_address_file(self._config.address_file)

    async def _run_workers(self, metrics_address: str) -> int:
        spares = asyncio.create_task(self._spare.keep())
        spares.add_done_callback(_report)
        try:
            if not await self._start_workers():
                return self._failed.result() if self._failed.done() else 0
            self._started = True
            write_address_file(
                self._config.address_file,
                service=self._service,
                grpc_address=self._grpc_address,
                metrics_address=metrics_address,
            )
            _log.info(
                "serving",
                grpc_address=self._grpc_address,
                metrics=metrics_address,
                workers=self._count,
            )
            await self._until_end_or(())
            return self._failed.result() if self._failed.done() else 0
        finally:
            self._stop.set()  # from here on no worker takes the spare
            spares.cancel()
            await asyncio.wait([spares])
            await self._end_workers()
            _log.info("stopped")

    async def _start_workers(self) -> bool:
        """Returns whether all workers serve; False when one cannot, or a signal came before."""
        for first, last in ((0, 1), (1, self._count)):
            self._keepers += [asyncio.create_task(self._keep(n)) for n in range(first, last)]
            for keeper in self._keepers[first:last]:
                keeper.add_done_callback(self._on_keeper_done)
            if not await self._until_end_or(self._served[first:last]):
                return False
        return True

    async def _until_end_or(self, served: Sequence[asyncio.Event]) -> bool:
        """Returns whether all of these, at least one, were set before a signal or a failure."""

        async def all_serve() -> None:
            for event in served:
                await event.wait()

        stopping = asyncio.create_task(self._stop.wait())
        serving = asyncio.create_task(all_serve()) if served else None
        ends: list[asyncio.Future[Any]] = [stopping, self._failed, *([serving] if serving else [])]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return serving is not None and serving.done() and not self._stop.is_set()
        finally:
            for task in (stopping, serving):
                if task is not None:
                    task.cancel()

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        _log.error("workers cannot be kept", exc_info=error)
        self._end(1)

    def _end(self, status: int) -> None:
        if not self._failed.done():
            self._failed.set_result(status)

    async def _keep(self, number: int) -> None:
        """Keeps one place filled until the end."""
        restarts = Restarts()
        while not self._stop.is_set():
            began = self._loop.time()
            try:
                spare = self._spare.take()
                worker = spare or await self._start_process()
            except OSError as error:  # for now there is no process, memory or descriptor left
                if not self._started:
                    raise
                _log.error("worker not started", worker=number, reason=str(error))
                await self._sleep_unless_stopped(max(0.1, restarts.delay_seconds(0.0)))
                continue
            worker.give_seat(
                number,
                partial(self._answer, number, worker),
                grpc_address=self._grpc_address,
                replacement=self._started,
                orders=self._siblings.orders,
            )
            self._siblings.workers[number] = worker
            _log.info("worker started", worker=number, pid=worker.pid, spare=spare is not None)
            if self._stop.is_set():  # the signal went round before this one was there
                worker.signal(signal.SIGTERM)
            status = await worker.ended()
            del self._siblings.workers[number]
            self._all_serve.clear()
            self._figures.retire(number)
            self._parts.leave(number)
            if self._stop.is_set():
                return
            if not self._started:
                _log.error("worker did not start", worker=number, status=status)
                self._end(status if status > 0 else 1)
                return
            self._restarts += 1
            lived_seconds = self._loop.time() - began
            delay_seconds = restarts.delay_seconds(lived_seconds)
            _log.error(
                "worker ended",
                worker=number,
                pid=worker.pid,
                status=status,
                lived_seconds=round(lived_seconds, 1),
                replaced_in_seconds=delay_seconds,
            )
            if delay_seconds:
                await self._sleep_unless_stopped(delay_seconds)

    async def _sleep_unless_stopped(self, seconds: float) -> None:
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({stopping}, timeout=seconds)
        stopping.cancel()

    async def _end_workers(self) -> None:
        self._signal_workers(signal.SIGTERM)
        if not self._keepers:
            return
        limit_seconds = (
            self._config.drain_delay_seconds + self._config.shutdown_grace_seconds + _END_SECONDS
        )
        _, pending = await asyncio.wait(self._keepers, timeout=limit_seconds)
        if pending:
            _log.warning("workers do not end, and are killed", workers=len(pending))
            self._signal_workers(signal.SIGKILL)
            await asyncio.wait(pending)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in self._siblings.workers.values():
            worker.signal(number)

    async def _answer(
        self, number: int, worker: WorkerProcess, method: str, arguments: Mapping[str, Any]
    ) -> Any:
        match method:
            case "metrics":
                self._figures.take_metrics(worker, arguments["text"])
            case "counts":
                self._figures.take_counts(worker, arguments["rows"])
            case "ask_counts":
                return await self._figures.counts(**arguments)
            case "part":
                self._parts.say(number, **arguments)
            case "serving":
                worker.serving.set()
                self._parts.join(number)
                self._served[number].set()
                _log.info("worker serves", worker=number, pid=worker.pid)
                if self._serving() == self._count:
                    self._all_serve.set()
            case "ask_all":
                return await self._siblings.ask_all(**arguments)
            case "order":
                await self._siblings.order(**arguments)
            case _:
                raise ValueError(f"unknown method {method!r}")
        return None

    def _followed(self, subject: str, method: str) -> None:
        if method == "unload":
            self._figures.forget(subject)

    def _tell_parts(self, number: int, states: PartStates) -> None:
        self._siblings.workers[number].channel.tell("parts", {"states": states})

    def _serving(self) -> int:
        return sum(worker.serving.is_set() for worker in self._siblings.workers.values())

    def _start_metrics(self) -> MetricsServer:
        registry = CollectorRegistry()
        registry.register(self)
        try:
            return MetricsServer(Address.parse(self._config.metrics_address), registry)
        except OSError as error:
            raise BindError(
                f"cannot listen on {self._config.metrics_address}: {error.strerror or error}"
            ) from error

    def describe(self) -> Iterable[Metric]:
        """Names nothing in advance, so that registering does not scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Returns the metrics of all workers as one; runs on the thread of a scrape."""
        collected = asyncio.run_coroutine_threadsafe(self._collect(), self._loop)
        return collected.result(_COLLECT_SECONDS)

    async def _collect(self) -> list[Metric]:
        metrics = await self._figures.metrics(timeout_seconds=_METRICS_SECONDS)
        prefix = f"modelrail_{self._service}"
        return [
            GaugeMetricFamily(
                f"{prefix}_workers", "Processes that take requests", value=self._serving()
            ),
            CounterMetricFamily(
                f"{prefix}_worker_restarts_total",
                "Processes that ended and were replaced",
                value=self._restarts,
            ),
            *metrics,
        ]

    def _on_signal(self, number: signal.Signals) -> None:
        # The second signal must work while the event loop is stuck, so it does not go through it.
        for second in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(second)
            signal.signal(second, self._force)
        self._stop.set()
        _log.info("draining", signal=number.name)

    def _force(self, number: int, frame: object) -> None:
        # The workers are killed by the kernel when this process ends; here it happens before.
        self._signal_workers(signal.SIGKILL)
        remove_address_file(self._config.address_file)
        os._exit(128 + number)


def _report(spares: asyncio.Task[None]) -> None:
    """Says at once when there are no spares any more by a defect; the workers are kept without."""
    if not spares.cancelled() and (error := spares.exception()):
        _log.error("spares are no longer kept", exc_info=error)
