"""`modelrail-trainer`: reads the settings, puts the trainer together, serves it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from modelrail.client.channel import Connection
from modelrail.client.registry import AsyncRegistryClient
from modelrail.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from modelrail_server.application import Application, Runtime
from modelrail_server.config import ConfigError, load_config
from modelrail_server.data_directory import owned_data_directory
from modelrail_server.serve import run
from modelrail_trainer.code_roots import CodeRoots
from modelrail_trainer.config import TrainerConfig
from modelrail_trainer.data_roots import DataRoots
from modelrail_trainer.execution.errands.dry_run import DryRuns
from modelrail_trainer.execution.errands.errand import Errands
from modelrail_trainer.execution.errands.inspections import Inspections
from modelrail_trainer.execution.errands.second_look import SecondLooks
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.executor import Executor
from modelrail_trainer.execution.processes.local import LocalExecutor
from modelrail_trainer.execution.publication.publisher import Publisher
from modelrail_trainer.execution.retention import Retention
from modelrail_trainer.execution.supervisor import Supervisor
from modelrail_trainer.identity import trainer_id
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.storage.database import open_database
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.metrics import TrainerMetrics
from modelrail_trainer.objects.fetching import ObjectFetcher
from modelrail_trainer.protocol.policy import POLICY
from modelrail_trainer.protocol.registry_adapter import RegistryAdapter
from modelrail_trainer.protocol.requests import objects_of
from modelrail_trainer.protocol.servicer import TrainerServicer
from modelrail_trainer.threads import Threads
from modelrail_trainer.trainer import Trainer

_SERVICE = "modelrail.trainer.v1.TrainerService"
# Without -P a file in the job's directory could stand in for a module.
WORKER_COMMAND = (sys.executable, "-m", "modelrail_trainer.worker")


def registry_connection(config: TrainerConfig) -> Connection:
    """Returns how to reach the registry.

    Raises:
        ConfigError: The key cannot be read, or must not be sent there.
    """
    key_file = config.registry_api_key_file
    try:
        api_key = key_file.read_text().strip() if key_file else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("registry_api_key_file", f"cannot read {key_file}: {error}") from error
    try:
        return Connection(
            address=config.registry,
            api_key=api_key,
            ca_certificate=config.registry_ca_certificate,
        )
    except ValueError as error:
        raise ConfigError("registry", str(error)) from error


def _secret_files(config: TrainerConfig) -> list[Path]:
    files = (
        *(config.registry_api_key_file, config.api_keys_file, config.tls_key),
        config.database_password_file,
    )
    return _absolute(file for file in files if file is not None)


def _absolute(paths: Iterable[str | Path]) -> list[Path]:
    return [Path(path).absolute() for path in paths]


def _off_path(folders: Iterable[Path]) -> list[Path]:
    """Returns the folders that Python itself does not need."""
    needed = {Path(entry).resolve() for entry in sys.path if entry}
    return [folder for folder in folders if folder.resolve() not in needed]


@asynccontextmanager
async def build_trainer(
    config: TrainerConfig,
    runtime: Runtime,
    *,
    worker_command: Sequence[str],
    environ: Mapping[str, str],
) -> AsyncIterator[Application]:
    """Puts the trainer together; jobs run while the context is open.

    Args:
        config: The settings.
        runtime: What the chassis offers.
        worker_command: Program that carries out one job, given its directory.
        environ: Environment of the service.

    Raises:
        ConfigError: The data directory cannot be written, another trainer owns it, or a credential
            cannot be used.
        ServiceError: The database cannot be used.
    """
    async with AsyncExitStack() as stack:
        data_dir = stack.enter_context(
            owned_data_directory(config.data_dir.absolute(), service="trainer")
        )
        (data_dir / "jobs").mkdir(mode=0o700, exist_ok=True)
        threads = Threads()
        stack.callback(threads.close)
        own_id = await threads.run(trainer_id, data_dir)
        database = await threads.finish(
            partial(open_database, config.database_place()),
            dispose=lambda database: threads.run(database.close),
        )
        store = JobStore(
            database,
            max_queued_jobs=config.max_queued_jobs,
            trainer=own_id,
            lease_seconds=config.lease_seconds,
        )
        stack.callback(store.close)
        book = JobBook(store, threads)
        directories = JobDirectories(data_dir / "jobs")
        metrics = TrainerMetrics(runtime.metrics, store.count_by_state)
        registry = await stack.enter_async_context(AsyncRegistryClient(registry_connection(config)))
        data_roots, code_roots = config.data_roots(), config.code_roots()
        object_roots = config.object_roots()
        fetcher = ObjectFetcher(
            objects_of,
            object_roots,
            threads,
            max_objects=config.max_objects,
            max_bytes=config.max_object_bytes,
            count=metrics.object_bytes.inc,
        )
        cores = len(os.sched_getaffinity(0))
        local = partial(
            LocalExecutor,
            threads_per_job=max(1, cores // config.max_running_jobs),
            limits=JobLimits(
                memory_bytes=config.max_job_memory_bytes,
                cpu_seconds=config.max_job_cpu_seconds,
                processes=config.max_job_processes,
                file_bytes=config.max_job_file_bytes,
                log_bytes=config.max_job_log_bytes,
            ),
            environ=environ,
            stop_grace_seconds=config.cancel_grace_seconds,
        )
        readable, hidden = _absolute(config.job_readable_paths), [data_dir, *_secret_files(config)]
        executor = local(
            [
                *worker_command,
                *(f"--data-root={root}" for root in data_roots),
                *(f"--user-code={root}" for root in code_roots),
            ],
            readable=[*data_roots, *code_roots, *readable],
            hidden=hidden,
        )

        async def errands(
            kind: str, limit_seconds: float, *, executor: Executor, stopping: asyncio.Event
        ) -> Errands:
            return await stack.enter_async_context(
                Errands(
                    kind,
                    directories=JobDirectories(data_dir / f"{kind.replace(' ', '-')}s"),
                    executor=executor,
                    fetcher=fetcher,
                    threads=threads,
                    stopping=stopping,
                    limit_seconds=limit_seconds,
                )
            )

        looking = await errands(
            "second look",
            config.second_look_seconds,
            # It needs no data, and no code of anybody: neither is named to it.
            executor=local(
                worker_command, readable=readable, hidden=[*hidden, *_off_path(code_roots)]
            ),
            # The publisher, whose errands they are, knows when to stop.
            stopping=asyncio.Event(),
        )
        publisher = Publisher(
            registry=RegistryAdapter(registry),
            book=book,
            directories=directories,
            look_again=SecondLooks(looking, book, directories).look,
            threads=threads,
            metrics=metrics,
        )
        supervisor = await stack.enter_async_context(
            Supervisor(
                book=book,
                executor=executor,
                fetcher=fetcher,
                directories=directories,
                publisher=publisher,
                threads=threads,
                metrics=metrics,
                max_running_jobs=config.max_running_jobs,
                stop_grace_seconds=config.cancel_grace_seconds,
                max_silence_seconds=config.max_job_silence_seconds,
                lease_seconds=config.lease_seconds,
            )
        )
        retention = await stack.enter_async_context(
            Retention(
                book=book,
                directories=directories,
                threads=threads,
                keep_ended_jobs=config.keep_ended_jobs,
            )
        )

        asked_for = partial(errands, executor=executor, stopping=runtime.stopping)
        servicer = TrainerServicer(
            Trainer(
                book,
                supervisor,
                retention=retention,
                dry_runs=DryRuns(await asked_for("dry run", config.dry_run_seconds)),
                inspections=Inspections(await asked_for("inspection", config.inspection_seconds)),
                data_roots=DataRoots(data_roots),
                object_roots=object_roots,
                code_roots=CodeRoots(code_roots),
                stopping=runtime.stopping,
            )
        )
        yield Application(
            register=partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, servicer),
            services=(_SERVICE,),
            policy=POLICY,
            descriptors=(trainer_pb2.DESCRIPTOR,),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    config = load_config(TrainerConfig, service="trainer", argv=argv)
    build = partial(build_trainer, config, worker_command=WORKER_COMMAND, environ=dict(os.environ))
    return run(config, service="trainer", build=build)


if __name__ == "__main__":
    sys.exit(main())
