"""The life of a server process: start, ready, drain, stop.

On the first SIGTERM or SIGINT: health says NOT_SERVING; the server goes on serving for the drain
delay, so that load balancers can notice; watch streams are asked to end; new calls are refused and
those in flight get the grace; the service closes its own things; the process exits with status 0. A
second signal ends it at once, with status 128 + signal.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager

import structlog
from prometheus_client import (
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from modelrail_server.address import Address, BindError
from modelrail_server.address_file import remove_address_file, write_address_file
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ServerConfig
from modelrail_server.data_directory import make_data_directory
from modelrail_server.exit_status import run_to_exit_status
from modelrail_server.file_limit import raise_file_limit
from modelrail_server.observability.logs import configure_logging
from modelrail_server.observability.scrape import MetricsServer
from modelrail_server.server import start_server
from modelrail_server.supervision.link import open_link
from modelrail_server.supervision.seat import Seat

__all__ = ["Application", "Runtime", "run", "start_server"]

Build = Callable[[Runtime], AbstractAsyncContextManager[Application]]

_log = structlog.get_logger()


def run(config: ServerConfig, *, service: str, build: Build, seat: Seat | None = None) -> int:
    """Runs a service until a signal ends it, and returns the exit status of the process.

    Args:
        config: The settings.
        service: Short name, like `registry`.
        build: Makes the application; its context is left after the last call has ended.
        seat: The place of a worker among others, whose supervisor has the metrics address and
            writes the address file; None: this process is all there is.

    Returns:
        0 after a signal; 1 if the service failed or an address is taken; 2 if a file that the
        configuration names cannot be used.
    """
    configure_logging(config.log_level, service=service, worker=seat.number if seat else None)
    # A second series for each counter, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    raise_file_limit()
    return run_to_exit_status(_Process(config, service, build, seat).run, service=service)


class _Process:
    """One run of a server."""

    def __init__(self, config: ServerConfig, service: str, build: Build, seat: Seat | None) -> None:
        self._seat = seat
        self._config = config
        self._service = service
        self._build = build
        self._stop = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serves until a signal comes; returns 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        self._starting = asyncio.current_task()
        try:
            await self._serve()
        except asyncio.CancelledError:
            # A signal during the start cancels it. Any other cancellation is not ours to keep.
            if not self._stop.is_set():
                raise
            _log.info("stopped before the start was complete")
        return 0

    async def _serve(self) -> None:
        config = self._config
        make_data_directory(config.data_dir)
        runtime = Runtime(self._service)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=runtime.metrics)
        async with AsyncExitStack() as stack:
            if self._seat is not None:
                runtime.link = await stack.enter_async_context(
                    open_link(self._seat, runtime.metrics, runtime.health)
                )
            application = await stack.enter_async_context(self._build(runtime))
            server, grpc_address = await start_server(application, config, runtime)
            # Modules, classes and what was put together live as long as the process. Looking at all
            # of them again takes the garbage collector tens of milliseconds in which nothing runs.
            gc.collect()
            gc.freeze()
            try:
                with self._told(runtime, grpc_address):
                    self._starting = None
                    await self._stop.wait()
                    await self._drain(application, runtime)
                    await server.stop(config.shutdown_grace_seconds)
            finally:
                await server.stop(None)
        _log.info("stopped")

    async def _drain(self, application: Application, runtime: Runtime) -> None:
        _log.info("draining", delay_seconds=self._config.drain_delay_seconds)
        runtime.health.drain()
        await asyncio.sleep(self._config.drain_delay_seconds)
        runtime.stopping.set()
        if application.close_streams is not None:
            application.close_streams.set()
        runtime.health.close()

    @contextmanager
    def _told(self, runtime: Runtime, grpc_address: str) -> Iterator[None]:
        """Says where this process serves: to its supervisor, or to everybody."""
        if runtime.link is not None:
            runtime.link.serving()
            yield
            return
        metrics = self._start_metrics(runtime)
        try:
            write_address_file(
                self._config.address_file,
                service=self._service,
                grpc_address=grpc_address,
                metrics_address=str(metrics.address),
            )
            _log.info("serving", grpc_address=grpc_address, metrics=str(metrics.address))
            yield
        finally:
            metrics.close()
            remove_address_file(self._config.address_file)

    def _start_metrics(self, runtime: Runtime) -> MetricsServer:
        try:
            return MetricsServer(Address.parse(self._config.metrics_address), runtime.metrics)
        except OSError as error:
            raise BindError(
                f"cannot listen on {self._config.metrics_address}: {error.strerror or error}"
            ) from error

    def _on_signal(self, number: signal.Signals) -> None:
        # The second signal must work while the event loop is stuck, so it does not go through it.
        for second in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(second)
            signal.signal(second, self._force)
        self._stop.set()
        if self._starting is not None:
            self._starting.cancel()

    def _force(self, number: int, frame: object) -> None:
        # Everything that is kept is safe against a crash, so the fastest end is a good one.
        remove_address_file(self._config.address_file)
        os._exit(128 + number)
