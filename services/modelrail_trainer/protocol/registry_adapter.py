"""The registry as the publisher wants it, over the registry's client."""

from __future__ import annotations

from contextlib import aclosing, suppress
from datetime import UTC, timedelta
from io import BufferedReader

from modelrail.client.errors import NotFound
from modelrail.client.registry import AsyncRegistryClient
from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_trainer.handover.artifact import ArtifactError, ResultFile, TrainingResult
from modelrail_trainer.jobs.job import Job
from modelrail_trainer.protocol.version import model_version_to_pb

# The registry dates versions by its own clock, which may not agree with this machine's.
_CLOCK_DIFFERENCE = timedelta(days=1)


class RegistryAdapter:
    """Publishes with a registry client; see `execution.registry.VersionRegistry`.

    Args:
        client: Speaks to the registry, reachable or not.
    """

    def __init__(self, client: AsyncRegistryClient) -> None:
        self._client = client

    async def probe(self, model: ModelName) -> None:
        """Returns when the registry answers, whether or not it has the model."""
        with suppress(NotFound):
            await self._client.get_model(str(model))

    async def upload(self, content: BufferedReader, file: ResultFile) -> None:
        """Sends the content of a file; bytes that the registry has are not sent again.

        Raises:
            ArtifactError: The content is not that of the file.
            OSError: The content cannot be read.
        """
        sent = await self._client.upload_file(
            content, version_path=file.path, media_type=file.media_type
        )
        if sent.sha256 != file.sha256:
            raise ArtifactError(f"file {file.path!r} changed while it was published")

    async def version_of(self, job: Job) -> str | None:
        """Returns the name of the version that was made from the job; None when there is none.

        Looks at versions from the newest back to the time when the job was created.
        """
        model = str(ModelName(job.publication.model))
        oldest = job.create_time - _CLOCK_DIFFERENCE
        with suppress(NotFound):
            async with aclosing(self._client.list_model_versions(model)) as versions:
                async for version in versions:
                    if version.lineage.training_job == str(job.name):
                        return version.name
                    if version.create_time.ToDatetime(tzinfo=UTC) < oldest:
                        break
        return None

    async def create_version(self, result: TrainingResult, job: Job, request_id: str) -> str:
        """Makes a version from files that were sent before, and returns its name."""
        version = await self._client.create_model_version(
            str(ModelName(job.publication.model)),
            model_version_to_pb(result, job.name, job.publication.description),
            create_model=True,
            request_id=request_id,
        )
        return version.name

    async def set_alias(
        self, alias: ModelAliasName, version: ModelVersionName, request_id: str
    ) -> None:
        """Points an alias at a version, and makes the alias where it is missing."""
        await self._client.set_alias(str(alias), str(version), request_id=request_id)
