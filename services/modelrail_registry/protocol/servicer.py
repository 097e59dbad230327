"""The registry's RPCs: convert, call, convert back."""

# ruff: noqa: N802 (the names of RPCs)

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from typing import TypeVar

from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from modelrail_registry.catalog.catalog import Catalog
from modelrail_registry.catalog.watching import Watch
from modelrail_registry.metrics import RegistryMetrics
from modelrail_registry.protocol import replies, requests
from modelrail_registry.publishing import Publisher
from modelrail_registry.storage.transfer import Transfer
from modelrail_server.context import Context
from modelrail_server.errors import InvalidArgument

Result = TypeVar("Result")


class RegistryServicer(RegistryServiceServicer):
    """Answers calls of `modelrail.registry.v1.RegistryService`.

    Versions are converted in threads, as a large one takes tens of milliseconds.

    Args:
        catalog: Models, versions and aliases.
        publisher: Publishes versions.
        transfer: Moves bytes.
        watch: Follows the history.
        executor: Threads for the database and what it gives.
        metrics: What is counted.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        publisher: Publisher,
        transfer: Transfer,
        watch: Watch,
        executor: Executor,
        metrics: RegistryMetrics,
    ) -> None:
        self._catalog = catalog
        self._publisher = publisher
        self._transfer = transfer
        self._watch = watch
        self._executor = executor
        self._metrics = metrics

    async def _run(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:
        """Returns one model."""
        name = requests.model_name(request.name)
        return replies.model_to_pb(await self._run(lambda: self._catalog.get_model(name)))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Lists models."""
        wanted = requests.models_page(request)
        page = await self._run(lambda: self._catalog.list_models(wanted))
        return pb.ListModelsResponse(
            models=map(replies.model_to_pb, page.items), next_page_token=page.next_page_token
        )

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.Model:
        """Creates a model."""
        new, key = requests.new_model(request)
        model = await self._run(
            lambda: self._catalog.create_model(
                new.name, description=new.description, labels=new.labels, key=key
            )
        )
        return replies.model_to_pb(model)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> pb.Model:
        """Changes a model."""
        change = requests.model_change(request)
        return replies.model_to_pb(await self._run(lambda: self._catalog.update_model(change)))

    async def GetModelVersion(
        self, request: pb.GetModelVersionRequest, context: Context
    ) -> pb.ModelVersion:
        """Returns one version, by number or by alias."""
        name = requests.version_name(request.name)
        return await self._run(lambda: replies.version_to_pb(self._catalog.get_version(name)))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        """Lists the versions of a model."""
        parent, wanted = requests.children_page(request, "versions")
        return await self._run(
            lambda: replies.versions_to_pb(self._catalog.list_versions(parent, wanted))
        )

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Context
    ) -> pb.ModelVersion:
        """Publishes a version."""
        wish = await self._run(lambda: requests.publication(request))
        version = await self._publisher.publish(wish)
        self._metrics.versions_created.inc()
        return await self._run(lambda: replies.version_to_pb(version))

    async def GetModelAlias(
        self, request: pb.GetModelAliasRequest, context: Context
    ) -> pb.ModelAlias:
        """Returns one alias."""
        name = requests.alias_name(request.name)
        return replies.alias_to_pb(await self._run(lambda: self._catalog.get_alias(name)))

    async def ListModelAliases(
        self, request: pb.ListModelAliasesRequest, context: Context
    ) -> pb.ListModelAliasesResponse:
        """Lists the aliases of a model."""
        parent, wanted = requests.children_page(request, "aliases")
        page = await self._run(lambda: self._catalog.list_aliases(parent, wanted))
        return pb.ListModelAliasesResponse(
            model_aliases=map(replies.alias_to_pb, page.items),
            next_page_token=page.next_page_token,
        )

    async def UpdateModelAlias(
        self, request: pb.UpdateModelAliasRequest, context: Context
    ) -> pb.ModelAlias:
        """Points an alias at a version."""
        move, key = requests.alias_move(request)
        return replies.alias_to_pb(await self._run(lambda: self._catalog.move_alias(move, key=key)))

    async def DeleteModelAlias(
        self, request: pb.DeleteModelAliasRequest, context: Context
    ) -> pb.DeleteModelAliasResponse:
        """Removes an alias."""
        name = requests.alias_name(request.name)
        await self._run(lambda: self._catalog.delete_alias(name, etag=request.etag))
        return pb.DeleteModelAliasResponse()

    async def GetBlob(self, request: pb.GetBlobRequest, context: Context) -> pb.Blob:
        """Tells how much of a blob is stored."""
        sha256 = requests.blob_digest(request.name)
        return replies.blob_to_pb(await self._transfer.status(sha256))

    async def UploadBlob(
        self, parts: AsyncIterator[pb.UploadBlobRequest], context: Context
    ) -> pb.Blob:
        """Receives one blob."""
        header = _header(await self._transfer.first(parts))
        sha256 = requests.blob_digest(header.name, "header.name")
        async with aclosing(_chunks(parts)) as chunks:
            status = await self._transfer.receive(sha256, header.size_bytes, chunks)
        return replies.blob_to_pb(status)

    # A generator cannot tell how long its piece is on the way.
    async def DownloadBlob(  # type: ignore[override]
        self, request: pb.DownloadBlobRequest, context: Context
    ) -> None:
        """Sends one blob."""
        sha256 = requests.blob_digest(request.name)

        async def write(offset: int, data: bytes) -> None:
            chunk = pb.BlobChunk(offset_bytes=offset, data=data)
            await context.write(pb.DownloadBlobResponse(chunk=chunk))

        await self._transfer.send(sha256, request.offset_bytes, write)

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """Sends changes."""
        token, models = requests.watch(request)
        async with aclosing(self._watch.follow(token, models)) as changes:
            async for place, event in changes:
                yield replies.event_to_pb(place, event)


def _header(first: pb.UploadBlobRequest | None) -> pb.UploadBlobHeader:
    if first is not None and first.WhichOneof("part") == "header":
        return first.header
    raise InvalidArgument.field("header", "expected the header in the first message, got none")


async def _chunks(
    requests: AsyncIterator[pb.UploadBlobRequest],
) -> AsyncGenerator[tuple[int, bytes], None]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidArgument.field("chunk", "expected a chunk after the header, got none")
        yield request.chunk.offset_bytes, request.chunk.data
