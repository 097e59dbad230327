"""From protobuf requests to the domain's values; what is wrong with a request is found here."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from modelrail.names import BlobName, InvalidName, ModelAliasName, ModelName, ModelVersionName
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail_registry import rules
from modelrail_registry.catalog.aliases import AliasMove
from modelrail_registry.catalog.catalog import Publication
from modelrail_registry.catalog.events import ResumeToken
from modelrail_registry.catalog.idempotency import RequestKey
from modelrail_registry.catalog.models import ModelChange
from modelrail_registry.catalog.pagination import PageRequest
from modelrail_registry.protocol.counts import check_counts
from modelrail_registry.resources import (
    ExportAttempt,
    ExportCertificate,
    File,
    Lineage,
    Metric,
    Model,
    OutputParity,
    Signature,
    TensorSpec,
    ValueRange,
    VersionContent,
)
from modelrail_server.errors import FieldViolation, InvalidArgument

_MAX_WATCHED_MODELS = 1024
_MAX_MASK_PATHS = 16
_MAX_VIOLATIONS = 100

Name = TypeVar("Name", covariant=True)  # noqa: PLC0105 (a name, read or given out)


class _NameType(Protocol[Name]):
    def parse(self, name: str) -> Name: ...


class _Reader:
    """Reads the fields of one request and collects what is wrong with them."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def add(self, violations: Iterable[FieldViolation]) -> None:
        """Takes in what is wrong, up to a number that somebody would read."""
        for violation in violations:
            if len(self.violations) == _MAX_VIOLATIONS:
                description = (
                    f"only the first {_MAX_VIOLATIONS} wrong fields are listed, this and others "
                    "are wrong too"
                )
                self.violations.append(FieldViolation(violation.field, description))
            if len(self.violations) > _MAX_VIOLATIONS:
                return
            self.violations.append(violation)

    def name(self, field: str, text: str, kind: _NameType[Name]) -> Name | None:
        try:
            return kind.parse(text)
        except InvalidName as error:
            self.add([FieldViolation(field, str(error))])
            return None

    def key(self, request: Message, request_id: str) -> RequestKey | None:
        if not request_id:
            return None
        if not _is_uuid4(request_id):
            self.add([FieldViolation("request_id", f"expected a UUID4, got {request_id[:80]!r}")])
            return None
        content = request.SerializeToString(deterministic=True)
        kind = request.DESCRIPTOR.full_name.encode()
        return RequestKey(request_id.lower(), hashlib.sha256(kind + b"\0" + content).hexdigest())

    def mask(self, paths: Sequence[str], allowed: Sequence[str]) -> set[str]:
        """Returns the paths; none of a mask that is too long to be read."""
        if len(paths) > _MAX_MASK_PATHS:
            description = f"expected at most {_MAX_MASK_PATHS} paths, got {len(paths)}"
            self.add([FieldViolation("update_mask", description)])
            return set()
        self.add(
            FieldViolation("update_mask", f"expected {', '.join(allowed)} or *, got {path[:80]!r}")
            for path in paths
            if path not in (*allowed, "*")
        )
        return set(paths)

    def check(self) -> None:
        if self.violations:
            raise _invalid(self.violations)


def _invalid(violations: Sequence[FieldViolation]) -> InvalidArgument:
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return InvalidArgument(f"{first.field}: {first.description}{more}", violations=violations)


def _is_uuid4(text: str) -> bool:
    try:
        value = uuid.UUID(text)
    except ValueError:
        return False
    return value.version == 4 and str(value) == text.lower()


def _parse(field: str, text: str, kind: _NameType[Name]) -> Name:
    try:
        return kind.parse(text)
    except InvalidName as error:
        raise _invalid([FieldViolation(field, str(error))]) from None


def model_name(text: str, field: str = "name") -> ModelName:
    """Reads a model's name; raises InvalidArgument that names the field."""
    return _parse(field, text, ModelName)


def version_name(text: str) -> ModelVersionName | ModelAliasName:
    """Reads the name of a version or of an alias; raises InvalidArgument that names the field."""
    if "/aliases/" in text:
        return _parse("name", text, ModelAliasName)
    return _parse("name", text, ModelVersionName)


def alias_name(text: str) -> ModelAliasName:
    """Reads an alias's name; raises InvalidArgument that names the field."""
    return _parse("name", text, ModelAliasName)


def blob_digest(text: str, field: str = "name") -> str:
    """Reads a blob's name and returns its digest; raises InvalidArgument that names the field."""
    return _parse(field, text, BlobName).sha256


def models_page(request: pb.ListModelsRequest) -> PageRequest:
    """Reads the page of a list of models."""
    return PageRequest.parse(
        page_size=request.page_size, page_token=request.page_token, collection="models"
    )


def children_page(
    request: pb.ListModelVersionsRequest | pb.ListModelAliasesRequest, collection: str
) -> tuple[ModelName, PageRequest]:
    """Reads the parent and the page of a list below a model."""
    parent = model_name(request.parent, "parent")
    page = PageRequest.parse(
        page_size=request.page_size,
        page_token=request.page_token,
        collection=f"{parent}/{collection}",
    )
    return parent, page


def new_model(request: pb.CreateModelRequest) -> tuple[Model, RequestKey | None]:
    """Reads a wish for a model: only name, description and labels of the result mean anything."""
    reader = _Reader()
    try:
        name = ModelName(request.model_id)
    except InvalidName as error:
        reader.add([FieldViolation("model_id", str(error))])
        name = None
    reader.add(rules.check_description("model.description", request.model.description))
    reader.add(rules.check_labels("model.labels", request.model.labels))
    key = reader.key(request, request.request_id)
    reader.check()
    assert name is not None  # noqa: S101 (checked above)
    epoch = datetime.fromtimestamp(0).astimezone()
    return (
        Model(
            name=name,
            uid="",
            description=request.model.description,
            labels=dict(request.model.labels),
            latest_version_number=0,
            create_time=epoch,
            update_time=epoch,
            etag="",
        ),
        key,
    )


def model_change(request: pb.UpdateModelRequest) -> ModelChange:
    """Reads a wish to change a model."""
    reader = _Reader()
    model = request.model
    name = reader.name("model.name", model.name, ModelName)
    paths = reader.mask(request.update_mask.paths, ("description", "labels"))
    description = model.description if paths & {"description", "*"} else None
    labels = model.labels if paths & {"labels", "*"} else None
    if not paths:
        description, labels = model.description or None, model.labels or None
    reader.add(rules.check_description("model.description", description or ""))
    reader.add(rules.check_labels("model.labels", labels or {}))
    reader.check()
    assert name is not None  # noqa: S101 (checked above)
    return ModelChange(
        name=name,
        description=description,
        labels=None if labels is None else dict(labels),
        etag=model.etag,
    )


def alias_move(request: pb.UpdateModelAliasRequest) -> tuple[AliasMove, RequestKey | None]:
    """Reads a wish to move an alias."""
    reader = _Reader()
    alias = request.model_alias
    name = reader.name("model_alias.name", alias.name, ModelAliasName)
    version = reader.name("model_alias.model_version", alias.model_version, ModelVersionName)
    if name is not None and version is not None and name.model != version.model:
        description = f"expected a version of {name.parent}, got {version}"
        reader.add([FieldViolation("model_alias.model_version", description)])
    reader.mask(request.update_mask.paths, ("model_version",))
    key = reader.key(request, request.request_id)
    reader.check()
    assert name is not None  # noqa: S101 (checked above)
    assert version is not None  # noqa: S101
    move = AliasMove(
        name=name, version=version, etag=alias.etag, allow_missing=request.allow_missing
    )
    return move, key


def publication(request: pb.CreateModelVersionRequest) -> Publication:
    """Reads a wish to publish a version; every wrong field of it is listed in the error.

    Where a list of it is too long, only that is told.
    """
    reader = _Reader()
    parent = reader.name("parent", request.parent, ModelName)
    if too_long := list(check_counts(request.model_version)):
        reader.add(too_long)
        reader.check()
    content = content_from_pb(request.model_version)
    reader.add(_unsaid_dimensions(request.model_version.signature))
    reader.add(rules.check_content(content))
    key = reader.key(request, request.request_id)
    reader.check()
    assert parent is not None  # noqa: S101 (checked above)
    return Publication(parent=parent, content=content, create_model=request.create_model, key=key)


def watch(request: pb.WatchEventsRequest) -> tuple[ResumeToken | None, frozenset[str]]:
    """Reads a wish to watch: the place to start behind, None for the present, and ids of models."""
    reader = _Reader()
    if len(request.models) > _MAX_WATCHED_MODELS:
        description = f"expected at most {_MAX_WATCHED_MODELS}, got {len(request.models)}"
        reader.add([FieldViolation("models", description)])
    names = [
        reader.name(f"models[{index}]", text, ModelName)
        for index, text in enumerate(request.models[:_MAX_WATCHED_MODELS])
    ]
    reader.check()
    token = ResumeToken.parse(request.resume_token) if request.resume_token else None
    return token, frozenset(name.model for name in names if name is not None)


def _unsaid_dimensions(signature: pb.Signature) -> rules.Violations:
    """Gives the dimensions without size and symbol, which the domain's values cannot express."""
    for role, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        for index, tensor in enumerate(tensors):
            for axis, dimension in enumerate(tensor.shape):
                if dimension.WhichOneof("extent") is None:
                    yield FieldViolation(
                        f"model_version.signature.{role}[{index}].shape[{axis}]",
                        "expected a size or a symbol, got neither",
                    )


def content_from_pb(message: pb.ModelVersion) -> VersionContent:
    """Returns what a publisher says about a version; output-only fields are ignored."""
    return VersionContent(
        files=tuple(File(f.path, f.sha256, f.size_bytes, f.media_type) for f in message.files),
        signature=_signature_from_pb(message.signature) if message.HasField("signature") else None,
        metrics=tuple(Metric(m.name, m.value, m.split, m.runtime) for m in message.metrics),
        lineage=_lineage_from_pb(message.lineage) if message.HasField("lineage") else None,
        certificate=_certificate_from_pb(message.certificate)
        if message.HasField("certificate")
        else None,
        description=message.description,
    )


def _signature_from_pb(message: pb.Signature) -> Signature:
    return Signature(
        inputs=tuple(map(_tensor_from_pb, message.inputs)),
        outputs=tuple(map(_tensor_from_pb, message.outputs)),
    )


def _tensor_from_pb(message: pb.TensorSpec) -> TensorSpec:
    value_range = message.value_range
    return TensorSpec(
        name=message.name,
        datatype=message.datatype,
        shape=tuple(
            dimension.symbol if dimension.HasField("symbol") else dimension.size
            for dimension in message.shape
        ),
        meaning=message.meaning,
        value_range=ValueRange(value_range.minimum, value_range.maximum)
        if message.HasField("value_range")
        else None,
        labels=tuple(message.labels),
    )


def _lineage_from_pb(message: pb.Lineage) -> Lineage:
    return Lineage(
        training_job=message.training_job,
        dataset=message.dataset,
        dataset_sha256=message.dataset_sha256,
        spec_sha256=message.spec_sha256,
        seed=message.seed,
        packages=dict(message.packages),
        parent_version=message.parent_version,
        hardware=message.hardware,
    )


def _certificate_from_pb(message: pb.ExportCertificate) -> ExportCertificate:
    return ExportCertificate(
        opset=message.opset,
        absolute_tolerance=message.absolute_tolerance,
        relative_tolerance=message.relative_tolerance,
        batch_sizes=tuple(message.batch_sizes),
        outputs=tuple(OutputParity(o.name, o.max_absolute_difference) for o in message.outputs),
        rows=message.rows,
        tools=dict(message.tools),
        attempts=tuple(ExportAttempt(a.method, a.failure) for a in message.attempts),
    )
