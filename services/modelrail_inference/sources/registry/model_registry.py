"""What the registry source asks of a registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_inference.sources.registry.cache import Manifest
from modelrail_inference.sources.registry.reference import Reference


class RegistryUnreachableError(Exception):
    """The registry did not answer, or not as it should; trying again can help.

    Args:
        message: What callers may know.
        detail: What it said, for the log only: addresses and paths can be in it.
    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class ModelRegistry(Protocol):
    """Models, versions, aliases, and the changes of them."""

    async def resolve(self, reference: Reference) -> ModelVersionName | None:
        """Returns the version that a reference means now; None when there is none.

        Raises:
            RegistryUnreachableError: It cannot be told.
        """

    def models_with(self, alias: str) -> AsyncIterator[ModelName]:
        """Yields the models that have an alias of this id.

        Raises:
            RegistryUnreachableError: They cannot all be told.
        """

    async def manifest(self, version: ModelVersionName) -> Manifest:
        """Returns the files of a version.

        Raises:
            RegistryUnreachableError: They cannot be told.
        """

    async def download(self, version: ModelVersionName, folder: Path) -> None:
        """Downloads the files of a version.

        Raises:
            RegistryUnreachableError: Not all bytes came, or not the right ones.
        """

    def changes(
        self, models: Sequence[ModelName]
    ) -> AsyncIterator[ModelName | ModelAliasName | None]:
        """Yields the models and aliases that changed; None first and when anything may have.

        Args:
            models: What to hear of; none means all.

        Raises:
            RegistryUnreachableError: The watch broke.
        """
