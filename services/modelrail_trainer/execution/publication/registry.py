"""What the publisher asks of a model registry."""

from __future__ import annotations

from io import BufferedReader
from typing import Protocol

from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_trainer.handover.artifact import ResultFile, TrainingResult
from modelrail_trainer.jobs.job import Job


class VersionRegistry(Protocol):
    """Takes files, versions and aliases. Every method raises `modelrail.client.ModelrailError`."""

    async def probe(self, model: ModelName) -> None:
        """Returns when the registry answers, whether or not it has the model."""

    async def upload(self, content: BufferedReader, file: ResultFile) -> None:
        """Sends the content of a file; bytes that the registry has are not sent again.

        Raises:
            ArtifactError: The content is not that of the file.
            OSError: The content cannot be read.
        """

    async def version_of(self, job: Job) -> str | None:
        """Returns the name of the version that was made from the job; None when there is none."""

    async def create_version(self, result: TrainingResult, job: Job, request_id: str) -> str:
        """Makes a version from files that were sent before, and returns its name."""

    async def set_alias(
        self, alias: ModelAliasName, version: ModelVersionName, request_id: str
    ) -> None:
        """Points an alias at a version, and makes the alias where it is missing."""
