"""From the registry's files of a version to verified files on the local disk."""

from __future__ import annotations

import asyncio

from modelrail.names import ModelVersionName
from modelrail_inference.model.definition import LoadError
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.registry.cache import Manifest, ModelCache
from modelrail_inference.sources.registry.followed import FollowedModel
from modelrail_inference.sources.registry.model_registry import ModelRegistry

_DOWNLOADS_AT_A_TIME = 4
_DOWNLOADS_OF_A_VERSION = 2


class VersionFiles:
    """Fetches versions into the cache, a few at a time.

    Args:
        registry: Where files come from.
        cache: Where they are kept.
        files: Runs the cache's work.
    """

    def __init__(self, registry: ModelRegistry, cache: ModelCache, files: FileWork) -> None:
        self._registry = registry
        self._cache = cache
        self._files = files
        self._downloads = asyncio.Semaphore(_DOWNLOADS_AT_A_TIME)

    async def fetch(self, model: FollowedModel, manifest: Manifest) -> None:
        """Downloads a version that is not in the cache, or not as the manifest says.

        Raises:
            LoadError: What the registry sends is not what its manifest says.
            RegistryUnreachableError: Not all bytes came.
            OSError: The cache cannot be written.
        """
        if await self._files.run(self._cache.find, manifest.version) != manifest:
            async with self._downloads:
                await self._download(model, manifest)
        model.confirmed.add(manifest.version.number)

    async def _download(self, model: FollowedModel, manifest: Manifest) -> None:
        version = manifest.version
        if model.refused.get(version.number) == manifest:
            raise _no_match(version)
        for _ in range(_DOWNLOADS_OF_A_VERSION):
            folder = await self._files.run(self._cache.staging, version)
            await self._registry.download(version, folder)
            if await self._files.run(self._cache.commit, manifest):
                return
            # What an earlier try left in the folder can be at fault; the next starts without.
        model.refused[version.number] = manifest
        raise _no_match(version)


def _no_match(version: ModelVersionName) -> LoadError:
    return LoadError(f"the files of {version} do not match the registry's manifest")
