"""Publishing a version: what can be wrong is found before the one transaction that makes it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from modelrail_registry.admission.agreement import agreed_signature
from modelrail_registry.admission.gate import Gate, Verdict
from modelrail_registry.catalog.catalog import Catalog, Publication
from modelrail_registry.resources import MODEL_FILE, File, ModelVersion
from modelrail_registry.storage.blobs import BlobStore
from modelrail_registry.storage.payload import HEAD_BYTES, TAIL_BYTES, refused_kind
from modelrail_server.errors import FailedPrecondition, FieldViolation

Result = TypeVar("Result")


class Publisher:
    """Publishes versions.

    Args:
        catalog: Where versions are kept.
        blobs: Where their bytes are kept.
        gate: What examines model files.
        database_executor: Threads for the catalog.
        disk_executor: Threads for the blobs.
    """

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        gate: Gate,
        *,
        database_executor: Executor,
        disk_executor: Executor,
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._gate = gate
        self._database_executor = database_executor
        self._disk_executor = disk_executor

    async def publish(self, publication: Publication) -> ModelVersion:
        """Publishes a version, or returns the one that the same request published before.

        Raises:
            NotFound: The model does not exist and is not to be made.
            AlreadyExists: The request id was used for another request.
            FailedPrecondition: Blobs are missing or have other sizes, or files are not admitted;
                all are listed.
            InvalidArgument: The signature does not agree with the graph.
        """
        before = await self._call(
            self._database_executor, lambda: self._catalog.find_publication(publication)
        )
        if before is not None:
            return before
        files = publication.content.files
        violations = await self._call(self._disk_executor, lambda: self._check_blobs(files))
        _refuse(violations, "BLOB_NOT_READY", "files are not stored as the manifest says")
        violations = await self._call(self._disk_executor, lambda: self._check_payloads(files))
        verdicts = {
            file.path: await self._gate.admit(file.sha256, self._blobs.path(file.sha256))
            for index, file in enumerate(files)
            if file.is_onnx and not any(v.field == _field(index) for v in violations)
        }
        violations += _rejections(files, verdicts)
        _refuse(violations, "FILE_REFUSED", "files are not admitted")
        content = publication.content
        if MODEL_FILE in verdicts:
            signature = agreed_signature(content.signature, verdicts[MODEL_FILE])
            content = dataclasses.replace(content, signature=signature)
        ready = dataclasses.replace(publication, content=content)
        return await self._call(self._database_executor, lambda: self._catalog.publish(ready))

    async def _call(self, executor: Executor, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    def _check_blobs(self, files: Sequence[File]) -> list[FieldViolation]:
        violations = []
        for index, file in enumerate(files):
            size = self._blobs.size(file.sha256)
            if size is None:
                problem = f"expected blobs/{file.sha256} to be uploaded, it is not complete"
            elif size != file.size_bytes:
                problem = f"expected size_bytes {size} of the stored blob, got {file.size_bytes}"
            else:
                continue
            violations.append(FieldViolation(_field(index), f"{file.path}: {problem}"))
        return violations

    def _check_payloads(self, files: Sequence[File]) -> list[FieldViolation]:
        violations = []
        for index, file in enumerate(files):
            head = self._blobs.head(file.sha256, HEAD_BYTES)
            kind = refused_kind(head, self._blobs.tail(file.sha256, TAIL_BYTES))
            if kind:
                violations.append(
                    FieldViolation(
                        _field(index),
                        f"{file.path}: expected plain data, got {kind}, which is refused",
                    )
                )
        return violations


def _field(index: int) -> str:
    return f"model_version.files[{index}]"


def _rejections(files: Sequence[File], verdicts: dict[str, Verdict]) -> list[FieldViolation]:
    return [
        FieldViolation(
            _field(index),
            f"{file.path}: expected a valid ONNX model, but {verdicts[file.path].rejected}",
        )
        for index, file in enumerate(files)
        if file.path in verdicts and verdicts[file.path].rejected
    ]


def _refuse(violations: Sequence[FieldViolation], reason: str, what: str) -> None:
    if violations:
        raise FailedPrecondition(
            f"{what}: " + "; ".join(violation.description for violation in violations[:5]),
            reason=reason,
            violations=violations,
        )
