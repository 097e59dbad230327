"""The registry's client in the form that the registry source asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path

from modelrail.client.errors import (
    DeadlineExceeded,
    ModelrailError,
    NotFound,
    Unavailable,
)
from modelrail.client.registry import AsyncRegistryClient
from modelrail.names import InvalidName, ModelAliasName, ModelName, ModelVersionName
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail_inference.sources.registry.cache import Manifest, ManifestFile
from modelrail_inference.sources.registry.model_registry import RegistryUnreachableError
from modelrail_inference.sources.registry.reference import Reference


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

    async def models_with(self, alias: str) -> AsyncIterator[ModelName]:
        """Yields the models that have an alias of this id."""
        with _reached():
            async for model in self._client.list_models():
                async for found in self._client.list_aliases(model.name):
                    name = ModelAliasName.parse(found.name)
                    if name.alias == alias:
                        yield name.parent

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

    async def changes(
        self, models: Sequence[ModelName]
    ) -> AsyncIterator[ModelName | ModelAliasName | None]:
        """Yields the models and aliases that changed; None first."""
        names = [str(model) for model in models]
        with _reached():
            async with aclosing(self._client.watch_events(models=names)) as responses:
                async for response in responses:
                    if response.HasField("event"):
                        yield _changed(response.event.resource)
                    else:
                        yield None


def _changed(resource: str) -> ModelName | ModelAliasName:
    if "/aliases/" in resource:
        return ModelAliasName.parse(resource)
    return ModelName(resource.partition("/")[2].partition("/")[0])


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
        # The text can hold addresses; who asks for a model is not told more than the code.
        code = error.status.name
        away = isinstance(error, Unavailable | DeadlineExceeded)
        raise RegistryUnreachableError(
            f"the registry cannot be reached ({code})" if away else f"the registry answers {code}",
            detail=str(error),
        ) from error
    except InvalidName as error:
        raise RegistryUnreachableError(
            "the registry sends a malformed name", detail=str(error)
        ) from error
