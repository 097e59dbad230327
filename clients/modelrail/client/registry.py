"""The model registry's client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from io import BufferedReader
from pathlib import Path

import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask

from modelrail.client.channel import Connection
from modelrail.client.download import Download, target_path
from modelrail.client.service import DEFAULT_TIMEOUT_SECONDS, ServiceClient, new_request_id
from modelrail.client.stream import follow
from modelrail.client.upload import Progress, Upload
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1.registry_pb2_grpc import RegistryServiceStub

__all__ = ["AsyncRegistryClient"]

_PAGE_SIZE = 200


class AsyncRegistryClient(ServiceClient):
    """Reads, publishes and follows models.

    Names are resource names: `models/digits`, `models/digits/versions/3`,
    `models/digits/aliases/production`. Every method raises `ModelrailError`, most specifically.

    Args:
        connection: Where the registry is, or just its address.
        timeout_seconds: Deadline of every call; transfers get more, by their size.
        channel: A channel to use instead of an own one; it is not closed.
    """

    def __init__(
        self,
        connection: Connection | str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        super().__init__(connection, timeout_seconds=timeout_seconds, channel=channel)
        self._stub = RegistryServiceStub(self._channel)

    async def get_model(self, name: str) -> pb.Model:
        """Returns one model."""
        return await self._call(self._stub.GetModel, pb.GetModelRequest(name=name))

    async def list_models(self) -> AsyncIterator[pb.Model]:
        """Yields every model in the order of the names."""
        pages = self._pages(
            lambda token: self._call(
                self._stub.ListModels, pb.ListModelsRequest(page_size=_PAGE_SIZE, page_token=token)
            ),
            lambda page: page.models,
        )
        async for model in pages:
            yield model

    async def create_model(
        self,
        model_id: str,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> pb.Model:
        """Creates a model without versions."""
        request = pb.CreateModelRequest(
            model_id=model_id,
            model=pb.Model(description=description, labels=labels or {}),
            request_id=request_id or new_request_id(),
        )
        return await self._call(self._stub.CreateModel, request)

    async def update_model(self, model: pb.Model, *, paths: Sequence[str]) -> pb.Model:
        """Changes the fields in `paths` (`description`, `labels`), if `model.etag` still holds."""
        request = pb.UpdateModelRequest(model=model, update_mask=FieldMask(paths=paths))
        return await self._call(self._stub.UpdateModel, request)

    async def get_model_version(self, name: str) -> pb.ModelVersion:
        """Returns one version, by the name of a version or of an alias."""
        return await self._call(self._stub.GetModelVersion, pb.GetModelVersionRequest(name=name))

    async def list_model_versions(self, parent: str) -> AsyncGenerator[pb.ModelVersion, None]:
        """Yields the versions of a model, the newest first."""
        pages = self._pages(
            lambda token: self._call(
                self._stub.ListModelVersions,
                pb.ListModelVersionsRequest(parent=parent, page_size=_PAGE_SIZE, page_token=token),
            ),
            lambda page: page.model_versions,
        )
        async for version in pages:
            yield version

    async def create_model_version(
        self,
        parent: str,
        version: pb.ModelVersion,
        *,
        create_model: bool = False,
        request_id: str | None = None,
    ) -> pb.ModelVersion:
        """Publishes a version from files that were uploaded before."""
        request = pb.CreateModelVersionRequest(
            parent=parent,
            model_version=version,
            create_model=create_model,
            request_id=request_id or new_request_id(),
        )
        return await self._call(self._stub.CreateModelVersion, request)

    async def get_alias(self, name: str) -> pb.ModelAlias:
        """Returns one alias."""
        return await self._call(self._stub.GetModelAlias, pb.GetModelAliasRequest(name=name))

    async def list_aliases(self, parent: str) -> AsyncIterator[pb.ModelAlias]:
        """Yields the aliases of a model in the order of their names."""
        pages = self._pages(
            lambda token: self._call(
                self._stub.ListModelAliases,
                pb.ListModelAliasesRequest(parent=parent, page_size=_PAGE_SIZE, page_token=token),
            ),
            lambda page: page.model_aliases,
        )
        async for alias in pages:
            yield alias

    async def set_alias(
        self, name: str, model_version: str, *, etag: str = "", request_id: str | None = None
    ) -> pb.ModelAlias:
        """Points an alias at a version, and makes the alias where it is missing.

        With the etag of an earlier read, the alias only moves when nobody moved it since
        (`Aborted`).
        """
        request = pb.UpdateModelAliasRequest(
            model_alias=pb.ModelAlias(name=name, model_version=model_version, etag=etag),
            update_mask=FieldMask(paths=["model_version"]),
            allow_missing=True,
            request_id=request_id or new_request_id(),
        )
        return await self._call(self._stub.UpdateModelAlias, request)

    async def delete_alias(self, name: str, *, etag: str = "") -> None:
        """Removes an alias; the version stays."""
        request = pb.DeleteModelAliasRequest(name=name, etag=etag)
        await self._call(self._stub.DeleteModelAlias, request)

    async def upload_file(
        self,
        path: Path | BufferedReader,
        *,
        version_path: str,
        media_type: str = "",
        on_progress: Progress | None = None,
    ) -> pb.File:
        """Uploads a file and returns its entry for `ModelVersion.files`.

        Bytes that the registry has are not sent again, and a broken stream resumes where it broke.

        Args:
            path: The file to read, or one of the disk that is open for it and stays open.
            version_path: Its path within the version.
            media_type: RFC 6838 media type.
            on_progress: Called with bytes done and bytes in all, on the event loop.

        Raises:
            OSError: The file cannot be read.
            ModelrailError: The registry refuses the bytes, or cannot be reached for long.
        """
        upload = Upload(
            self._stub,
            call_metadata=self._metadata,
            timeout_seconds=self.timeout_seconds,
            on_progress=on_progress,
        )
        sha256, size_bytes = await upload.send(path)
        return pb.File(
            path=version_path, sha256=sha256, size_bytes=size_bytes, media_type=media_type
        )

    async def download_file(
        self, file: pb.File, directory: Path, *, on_progress: Progress | None = None
    ) -> Path:
        """Downloads one file of a version below `directory` and returns its path.

        The file appears whole and verified, or not at all; a `.part` file left by a broken download
        is resumed, and one whose digest is wrong is removed.

        Raises:
            DataLoss: The bytes are not those that the version names.
            OSError: The disk is full or the directory cannot be written.
            ModelrailError: The registry refuses, or cannot be reached for long.
        """
        download = Download(
            self._stub,
            call_metadata=self._metadata,
            timeout_seconds=self.timeout_seconds,
            on_progress=on_progress,
        )
        return await download.receive(file, directory)

    async def pull(
        self, version: pb.ModelVersion, directory: Path, *, on_progress: Progress | None = None
    ) -> Path:
        """Downloads every file of a version into `directory` and returns the directory.

        `on_progress` counts the bytes of all files together.

        Raises:
            DataLoss: Bytes are not those that the version names, or a path leads out of the
                directory; in the latter case nothing was written.
            OSError: The disk is full or the directory cannot be written.
            ModelrailError: The registry refuses, or cannot be reached for long.
        """
        for file in version.files:
            target_path(directory, file.path)
        total = sum(file.size_bytes for file in version.files)
        finished = 0
        for file in version.files:
            base = finished

            def count(done: int, _: int, base: int = base) -> None:
                if on_progress is not None:
                    on_progress(base + done, total)

            await self.download_file(file, directory, on_progress=count)
            finished += file.size_bytes
        return directory

    async def watch_events(
        self, *, models: Sequence[str] = (), resume_token: str = ""
    ) -> AsyncGenerator[pb.WatchEventsResponse, None]:
        """Yields every change as it is committed, without end, across restarts of the registry.

        Without a resume token the first response is a bookmark: it has no event, and no change
        after it is missed. Wrap the iterator in `contextlib.aclosing` to end the stream when the
        loop is left.

        Args:
            models: Names to hear of, `models/{model}`; none means all.
            resume_token: Token of the last response that was handled.

        Raises:
            ModelrailError: The watch failed in a way that reconnecting cannot cure.
        """
        token = resume_token

        def open_stream() -> grpc.aio.UnaryStreamCall[
            pb.WatchEventsRequest, pb.WatchEventsResponse
        ]:
            request = pb.WatchEventsRequest(resume_token=token, models=models)
            return self._stub.WatchEvents(request, metadata=self._metadata)

        async with aclosing(follow(open_stream, has_ended=_never)) as responses:
            async for response in responses:
                token = response.resume_token
                yield response


async def _never() -> bool:
    return False
