"""The life of a server process: start, ready, drain, stop.

On the first SIGTERM or SIGINT: health says NOT_SERVING; the server goes on serving for the drain
delay, so that load balancers can notice; watch streams are asked to end; new calls are refused and
those in flight get the grace; the service closes its own things; the process exits with status 0. A
second signal ends it at once, with status 128 + signal.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import structlog
from prometheus_client import (
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from modelrail_server.address import Address
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ConfigError, ServerConfig
from modelrail_server.data_directory import make_data_directory
from modelrail_server.observability.logs import configure_logging
from modelrail_server.observability.scrape import MetricsServer
from modelrail_server.server import BindError, start_server

__all__ = ["Application", "Runtime", "run", "start_server"]

Build = Callable[[Runtime], AbstractAsyncContextManager[Application]]

_log = structlog.get_logger()


def run(config: ServerConfig, *, service: str, build: Build) -> int:
    """Runs a service until a signal ends it, and returns the exit status of the process.

    Args:
        config: The settings.
        service: Short name, like `registry`.
        build: Makes the application; its context is left after the last call has ended.

    Returns:
        0 after a signal; 1 if the service failed or an address is taken; 2 if a file that the
        configuration names cannot be used.
    """
    configure_logging(config.log_level, service=service)
    # A second series for each counter, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        asyncio.run(_Process(config, service, build).run())
    except ConfigError as error:
        print(f"modelrail-{service}: --{_flag(error)}: {error.problem}", file=sys.stderr)
        return 2
    except BindError as error:
        print(f"modelrail-{service}: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 the last place where a failure can be told
        _log.error("server failed", exc_info=error)
        return 1
    return 0


def _flag(error: ConfigError) -> str:
    return error.field.replace("_", "-")


class _Process:
    """One run of a server."""

    def __init__(self, config: ServerConfig, service: str, build: Build) -> None:
        self._config = config
        self._service = service
        self._build = build
        self._stop = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serves until a signal comes."""
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
        finally:
            self._remove_address_file()

    async def _serve(self) -> None:
        config = self._config
        make_data_directory(config.data_dir)
        runtime = Runtime(self._service)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=runtime.metrics)
        async with self._build(runtime) as application:
            server, grpc_address = await start_server(application, config, runtime)
            try:
                metrics = self._start_metrics(runtime)
                try:
                    self._write_address_file(grpc_address, str(metrics.address))
                    self._starting = None
                    _log.info("serving", grpc_address=grpc_address, metrics=str(metrics.address))
                    await self._stop.wait()
                    await self._drain(application, runtime)
                    await server.stop(config.shutdown_grace_seconds)
                finally:
                    metrics.close()
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
        self._remove_address_file()
        os._exit(128 + number)

    def _write_address_file(self, grpc_address: str, metrics_address: str) -> None:
        file = self._config.address_file
        if file is None:
            return
        content = {
            "service": self._service,
            "pid": os.getpid(),
            "grpc_address": grpc_address,
            "metrics_address": metrics_address,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(descriptor, "w") as stream:
            json.dump(content, stream)
        Path(temporary).replace(file)

    def _remove_address_file(self) -> None:
        file = self._config.address_file
        if file is None:
            return
        # A successor that was started with the same file has written its own by now.
        with suppress(OSError, ValueError):
            if json.loads(file.read_text())["pid"] == os.getpid():
                file.unlink()
