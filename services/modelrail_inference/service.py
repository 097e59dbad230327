"""One process that serves models: the only place where its parts are put together."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from modelrail.client.channel import Connection
from modelrail.client.registry import AsyncRegistryClient
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail_inference.config import InferenceConfig
from modelrail_inference.dataplane import DataPlane
from modelrail_inference.fleet.fleet import Fleet
from modelrail_inference.fleet.single import SingleProcess
from modelrail_inference.fleet.workers import Workers
from modelrail_inference.health import InferenceHealth
from modelrail_inference.metrics import InferenceCollector
from modelrail_inference.model.definition import LoadError
from modelrail_inference.model.provider import Provider
from modelrail_inference.protocol.config.model_config import read_settings
from modelrail_inference.protocol.policy import ALWAYS_ANSWERED, POLICY, RAW_METHODS, SERVICE
from modelrail_inference.protocol.registry_adapter import RegistryAdapter
from modelrail_inference.protocol.servicer import InferenceServicer, register
from modelrail_inference.repository.load_threads import THREAD_NAME as LOAD_THREADS
from modelrail_inference.repository.repository import Repository
from modelrail_inference.request.unread import UnreadReplies
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.provider import ProviderError, resolve
from modelrail_inference.runtime.trial.job import TrialLimits
from modelrail_inference.runtime.trial.trials import Trials
from modelrail_inference.scheduling.admission import QueueLimits
from modelrail_inference.scheduling.scheduler import THREAD_NAME as RUN_THREADS
from modelrail_inference.scheduling.scheduler import Scheduler
from modelrail_inference.sources.file import FileSource
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.folder import FolderSource
from modelrail_inference.sources.registry.cache import ModelCache
from modelrail_inference.sources.registry.source import RegistrySource
from modelrail_inference.sources.source import Source
from modelrail_inference.threads.plan import allowed_cpus, plan, usable_cpus
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ConfigError
from modelrail_server.data_directory import owned_data_directory
from modelrail_server.serve import run
from modelrail_server.supervision.seat import Seat

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def build(config: InferenceConfig, runtime: Runtime) -> AsyncIterator[Application]:
    """Wires the service for the length of the context.

    The process is live, and `""` is SERVING, as soon as it listens; `infer/MODEL` is SERVING
    while a version of the model takes requests in every worker; ServerReady is true once everything
    asked for is loaded. When the device of a model fails, none of the three holds any more, as
    `InferenceHealth` says. One file is loaded before the server listens: without it there is
    nothing to serve.

    Raises:
        ConfigError: The execution provider does not load, or the one model file cannot be served.
    """
    trials = Trials(
        TrialLimits(
            cpu_seconds=config.trial_cpu_seconds,
            memory_bytes=config.trial_memory_bytes,
            timeout_seconds=config.trial_timeout_seconds,
        )
    )
    files = FileWork()
    try:
        provider = await files.run(resolve, config.provider)
    except ProviderError as error:
        files.close()
        raise ConfigError("provider", str(error)) from error
    threads = plan(
        usable_cpus(),
        config.optimize,
        # Elsewhere runs wait for their device, and its libraries start threads in them.
        allowed=allowed_cpus() if provider is Provider.CPU else (),
        run_threads=config.run_threads,
        intra_op_threads=config.intra_op_threads,
        workers=config.workers,
    )
    loader = SessionLoader(
        provider=config.provider,
        intra_op_threads=threads.intra_op_threads,
        default_max_batch_size=config.default_max_batch_size,
        warmup_timeout_seconds=config.warmup_timeout_seconds,
        trials=trials,
        plans_threads=not config.intra_op_threads,
    )
    async with AsyncExitStack() as stack:
        stack.callback(files.close)
        if (folder := config.owned_folder()) is not None:
            stack.enter_context(owned_data_directory(folder, service="inference"))
        repository = Repository(
            loader,
            on_change=lambda name, ready: health.changed(name, ready),  # noqa: PLW0108 - made below
            load_threads=config.load_threads,
            load_timeout_seconds=config.load_timeout_seconds,
        )
        health = InferenceHealth(runtime.parts, repository.serving)
        scheduler = Scheduler(
            threads=threads.run_threads, limits=_limits(config), cpus=threads.cpus
        )
        stack.callback(scheduler.close)
        stack.push_async_callback(repository.close)
        stack.callback(trials.close)  # before the repository waits for its loads
        runtime.metrics.register(InferenceCollector(repository))
        link = runtime.link
        orders = link.seat.orders if link else {}
        unloaded = {name for name, order in orders.items() if order == "unload"}
        source = await _source(config, repository, files, unloaded, stack)
        for name in await source.names():
            health.changed(name, ready=False)
        own = SingleProcess(repository, source)
        stack.push_async_callback(own.close)
        fleet: Fleet = own
        if link is None:
            await _start(source, stack)
        else:
            workers = Workers(own, link, order_timeout_seconds=2 * config.load_timeout_seconds)
            link.attach(workers.answer)
            await _start(source, stack)
            if link.seat.replacement:
                await workers.catch_up(timeout_seconds=config.load_timeout_seconds)
            fleet = workers
        unread = UnreadReplies(config.max_unread_bytes)
        servicer = InferenceServicer(
            repository,
            DataPlane(
                repository,
                scheduler,
                unread,
                max_reply_bytes=config.max_message_bytes,
                on_device_failure=health.device_failed,
            ),
            fleet,
            unread,
            stopping=runtime.stopping,
            max_stream_in_flight=config.max_stream_in_flight,
        )
        yield Application(
            register=lambda server: register(servicer, server),
            services=(SERVICE,),
            policy=POLICY,
            descriptors=(pb.DESCRIPTOR,),
            raw_methods=RAW_METHODS,
            always_answered=ALWAYS_ANSWERED,
        )


def _limits(config: InferenceConfig) -> QueueLimits:
    return QueueLimits(
        max_items=config.max_queue_items,
        max_bytes=config.max_queue_bytes,
        max_model_items=config.max_model_queue_items or config.max_queue_items,
        max_model_bytes=config.max_model_queue_bytes or config.max_queue_bytes,
    )


async def _source(
    config: InferenceConfig,
    repository: Repository,
    files: FileWork,
    unloaded: Collection[str],
    stack: AsyncExitStack,
) -> Source:
    if config.model is not None:
        name = config.served_name()
        folder = config.data_dir / "files" / name
        return FileSource(
            config.model,
            name,
            folder,
            repository,
            files,
            vouched=config.vouched,
            unloaded=name in unloaded,
        )
    if config.model_repository is not None:
        return FolderSource(
            config.model_repository,
            repository,
            read_settings,
            files,
            vouched=config.vouched,
            unloaded=unloaded,
        )
    client = await stack.enter_async_context(AsyncRegistryClient(_connection(config)))
    return RegistrySource(
        config.references(),
        RegistryAdapter(client),
        ModelCache(config.data_dir),
        repository,
        files,
        read_settings=read_settings,
        max_models=config.max_models,
        unloaded=unloaded,
    )


async def _start(source: Source, stack: AsyncExitStack) -> None:
    try:
        await source.start()
    except LoadError as error:
        raise ConfigError("model", str(error)) from error
    task = asyncio.create_task(source.run())
    task.add_done_callback(_report)
    stack.push_async_callback(_stop, task)


def _report(task: asyncio.Task[None]) -> None:
    """Says at once when the source ends by a defect; what is loaded serves on."""
    if not task.cancelled() and (error := task.exception()):
        _log.error("models are no longer followed", exc_info=error)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    # How it ended was told when it did; the end of the service is not the time to raise it.
    await asyncio.wait([task])


def _connection(config: InferenceConfig) -> Connection:
    if config.registry is None:
        raise ConfigError("registry", "expected an address, got none")
    try:
        key = config.registry_api_key_file
        return Connection(
            address=config.registry,
            api_key=key.read_text(encoding="utf-8").strip() if key else None,
            ca_certificate=config.registry_ca_certificate,
        )
    except OSError as error:
        raise ConfigError("registry_api_key_file", error.strerror or "cannot be read") from None
    except ValueError as error:
        raise ConfigError("registry", str(error)) from None


def serve(config: InferenceConfig, seat: Seat | None = None) -> int:
    """Runs the service until it is told to stop; returns the exit status.

    Args:
        config: The settings.
        seat: The place of a worker; None: this process is the whole server.
    """
    if seat is not None:
        config = config.of_worker(seat.number, seat.grpc_address)
    status = run(
        config, service="inference", build=lambda runtime: build(config, runtime), seat=seat
    )
    _end_if_stuck(status)
    return status


def _end_if_stuck(status: int) -> None:
    """Ends the process here and now if a run or a load is stuck in native code.

    Such a thread cannot be stopped, and taking the interpreter down under it can crash.
    """
    names = (RUN_THREADS, LOAD_THREADS)
    stuck = [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]
    if stuck:
        _log.warning("ended under runs or loads that cannot be stopped", threads=stuck)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
