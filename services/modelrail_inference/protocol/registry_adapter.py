"""The registry's client in the form that the registry source asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path

from modelrail.client.errors import ModelrailError, NotFound
from modelrail.client.registry import AsyncRegistryClient
from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail.registry.v1 import registry_pb2 as pb

from modelrail_inference.sources.cache import Manifest, ManifestFile
from modelrail_inference.sources.registry import Reference, RegistryUnreachableError


class RegistryAdapter:
    """Asks a registry over gRPC.

    Args:
        client: The connection; the owner closes it.
    """

    def __init__(self, client: AsyncRegistryClient) -> None:
        self._client = client

    async def resolve(self, reference: Reference) -> ModelVersionName | None:
        """Returns the version that a reference means now; None when there is none."""
        with _reached():
            try:
                if isinstance(reference, ModelAliasName):
                    alias = await self._client.get_alias(str(reference))
                    return ModelVersionName.parse(alias.model_version)
                version = await self._client.get_model_version(str(reference))
                return ModelVersionName.parse(version.name)
            except NotFound:
                return None

    async def manifest(self, version: ModelVersionName) -> Manifest:
        """Returns the files of a version."""
        with _reached():
            found = await self._client.get_model_version(str(version))
        return _manifest(version, found)

    async def download(self, version: ModelVersionName, folder: Path) -> None:
        """Downloads the files of a version; each is verified while it is written."""
        with _reached():
            found = await self._client.get_model_version(str(version))
            await self._client.pull(found, folder)

    async def changes(self, models: Sequence[ModelName]) -> AsyncIterator[ModelName | None]:
        """Yields the models that changed; None first."""
        names = [str(model) for model in models]
        with _reached():
            async with aclosing(self._client.watch_events(models=names)) as responses:
                async for response in responses:
                    if response.HasField("event"):
                        yield ModelName("/".join(response.event.resource.split("/")[1:2]))
                    else:
                        yield None


def _manifest(version: ModelVersionName, found: pb.ModelVersion) -> Manifest:
    return Manifest(
        version,
        tuple(ManifestFile(file.path, file.sha256, file.size_bytes) for file in found.files),
    )


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except ModelrailError as error:
        raise RegistryUnreachableError(f"the registry answers: {error}") from error
