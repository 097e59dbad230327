"""Starts the registry: `modelrail-registry`, or `python -m modelrail_registry`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from modelrail_registry.admission.gate import Gate
from modelrail_registry.catalog.catalog import Catalog
from modelrail_registry.catalog.database import Database
from modelrail_registry.catalog.events import Feed
from modelrail_registry.catalog.watching import Watch
from modelrail_registry.config import RegistryConfig
from modelrail_registry.metrics import RegistryMetrics
from modelrail_registry.protocol.policy import POLICY, REQUEST_LIMITS, SERVICE
from modelrail_registry.protocol.servicer import RegistryServicer
from modelrail_registry.publishing import Publisher
from modelrail_registry.storage.blobs import BlobStore
from modelrail_registry.storage.sweeping import sweeping
from modelrail_registry.storage.transfer import Transfer
from modelrail_registry.threads import started_threads
from modelrail_server.application import Application, Runtime
from modelrail_server.config import load_config
from modelrail_server.data_directory import owned_data_directory
from modelrail_server.serve import run


@asynccontextmanager
async def build(config: RegistryConfig, runtime: Runtime) -> AsyncIterator[Application]:
    """Wires the registry, and takes it apart again.

    Raises:
        ConfigError: The data directory cannot be written, or another registry owns it.
        RuntimeError: The system does not allow so many threads.
    """
    metrics = RegistryMetrics(runtime.metrics)
    with contextlib.ExitStack() as stack:
        data_dir = stack.enter_context(
            owned_data_directory(config.data_dir.absolute(), service="registry")
        )
        feed = Feed(asyncio.get_running_loop())
        database = Database.at(data_dir / "registry.sqlite3", on_commit=feed.announce)
        stack.callback(database.close)
        # Executors are left before the database: a cancelled call's work ends on an open one.
        disk = stack.enter_context(started_threads(config.disk_threads, "disk"))
        threads = stack.enter_context(started_threads(config.database_threads, "database"))
        blobs = BlobStore(data_dir, max_blob_bytes=config.max_blob_bytes)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(threads, database.migrate)
        await loop.run_in_executor(disk, blobs.recover)
        catalog = Catalog(database)
        gate = Gate(
            database,
            executor=threads,
            processes=config.admission_processes,
            cpu_seconds=config.admission_cpu_seconds,
            wall_seconds=config.admission_wall_seconds,
        )
        transfer = Transfer(
            blobs,
            executor=disk,
            metrics=metrics,
            upload_idle_seconds=config.upload_idle_seconds,
            download_idle_seconds=config.download_idle_seconds,
        )
        servicer = RegistryServicer(
            catalog=catalog,
            publisher=Publisher(
                catalog, blobs, gate, database_executor=threads, disk_executor=disk
            ),
            transfer=transfer,
            watch=Watch(
                catalog, feed, executor=threads, stopping=runtime.stopping, metrics=metrics
            ),
            executor=threads,
            metrics=metrics,
        )
        async with sweeping(
            transfer,
            expiry_seconds=config.upload_expiry_seconds,
            interval_seconds=config.upload_sweep_seconds,
        ):
            yield Application(
                register=lambda server: add_RegistryServiceServicer_to_server(servicer, server),
                services=(SERVICE,),
                policy=POLICY,
                request_limits=REQUEST_LIMITS,
                descriptors=(pb.DESCRIPTOR,),
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the registry until a signal ends it, and returns the exit status."""
    config = load_config(RegistryConfig, service="registry", argv=argv)
    return run(config, service="registry", build=lambda runtime: build(config, runtime))


if __name__ == "__main__":
    sys.exit(main())
