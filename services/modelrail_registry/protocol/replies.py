"""From the domain's values to protobuf replies."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from modelrail.registry.v1 import registry_pb2 as pb
from modelrail_registry.catalog.events import ResumeToken
from modelrail_registry.catalog.pagination import Page
from modelrail_registry.resources import (
    Event,
    EventKind,
    ExportCertificate,
    Lineage,
    Model,
    ModelAlias,
    ModelVersion,
    Signature,
    TensorSpec,
)
from modelrail_registry.storage.blobs import BlobStatus

_EVENT_TYPES = {
    EventKind.MODEL_CREATED: pb.Event.TYPE_MODEL_CREATED,
    EventKind.MODEL_UPDATED: pb.Event.TYPE_MODEL_UPDATED,
    EventKind.VERSION_CREATED: pb.Event.TYPE_VERSION_CREATED,
    EventKind.ALIAS_MOVED: pb.Event.TYPE_ALIAS_MOVED,
    EventKind.ALIAS_DELETED: pb.Event.TYPE_ALIAS_DELETED,
}


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def model_to_pb(model: Model) -> pb.Model:
    """Returns the message of a model."""
    return pb.Model(
        name=str(model.name),
        uid=model.uid,
        description=model.description,
        labels=dict(model.labels),
        latest_version_number=model.latest_version_number,
        create_time=_timestamp(model.create_time),
        update_time=_timestamp(model.update_time),
        etag=model.etag,
    )


def version_to_pb(version: ModelVersion) -> pb.ModelVersion:
    """Returns the message of a version."""
    content = version.content
    return pb.ModelVersion(
        name=str(version.name),
        uid=version.uid,
        number=version.name.number,
        state=pb.ModelVersion.STATE_READY,
        files=[
            pb.File(
                path=file.path,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
                media_type=file.media_type,
            )
            for file in content.files
        ],
        signature=None if content.signature is None else _signature_to_pb(content.signature),
        metrics=[
            pb.Metric(name=m.name, value=m.value, split=m.split, runtime=m.runtime)
            for m in content.metrics
        ],
        lineage=None if content.lineage is None else _lineage_to_pb(content.lineage),
        certificate=None
        if content.certificate is None
        else _certificate_to_pb(content.certificate),
        description=content.description,
        create_time=_timestamp(version.create_time),
        aliases=version.aliases,
    )


def versions_to_pb(page: Page[ModelVersion]) -> pb.ListModelVersionsResponse:
    """Returns the message of a page of versions."""
    return pb.ListModelVersionsResponse(
        model_versions=map(version_to_pb, page.items), next_page_token=page.next_page_token
    )


def _signature_to_pb(signature: Signature) -> pb.Signature:
    return pb.Signature(
        inputs=[_tensor_to_pb(tensor) for tensor in signature.inputs],
        outputs=[_tensor_to_pb(tensor) for tensor in signature.outputs],
    )


def _tensor_to_pb(tensor: TensorSpec) -> pb.TensorSpec:
    value_range = tensor.value_range
    return pb.TensorSpec(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=[
            pb.Dimension(size=extent) if isinstance(extent, int) else pb.Dimension(symbol=extent)
            for extent in tensor.shape
        ],
        meaning=tensor.meaning,
        value_range=None
        if value_range is None
        else pb.ValueRange(minimum=value_range.minimum, maximum=value_range.maximum),
        labels=tensor.labels,
    )


def _lineage_to_pb(lineage: Lineage) -> pb.Lineage:
    return pb.Lineage(
        training_job=lineage.training_job,
        dataset=lineage.dataset,
        dataset_sha256=lineage.dataset_sha256,
        spec_sha256=lineage.spec_sha256,
        seed=lineage.seed,
        packages=dict(lineage.packages),
        parent_version=lineage.parent_version,
        hardware=lineage.hardware,
    )


def _certificate_to_pb(certificate: ExportCertificate) -> pb.ExportCertificate:
    return pb.ExportCertificate(
        opset=certificate.opset,
        absolute_tolerance=certificate.absolute_tolerance,
        relative_tolerance=certificate.relative_tolerance,
        batch_sizes=certificate.batch_sizes,
        outputs=[
            pb.OutputParity(name=o.name, max_absolute_difference=o.max_absolute_difference)
            for o in certificate.outputs
        ],
        rows=certificate.rows,
        tools=certificate.tools,
        attempts=[
            pb.ExportAttempt(method=a.method, failure=a.failure) for a in certificate.attempts
        ],
    )


def alias_to_pb(alias: ModelAlias) -> pb.ModelAlias:
    """Returns the message of an alias."""
    return pb.ModelAlias(
        name=str(alias.name),
        model_version=str(alias.version),
        create_time=_timestamp(alias.create_time),
        update_time=_timestamp(alias.update_time),
        etag=alias.etag,
    )


def blob_to_pb(status: BlobStatus) -> pb.Blob:
    """Returns the message of a blob."""
    return pb.Blob(
        name=f"blobs/{status.sha256}",
        size_bytes=status.size_bytes,
        committed_size_bytes=status.committed_size_bytes,
        complete=status.complete,
    )


def event_to_pb(token: ResumeToken, event: Event | None) -> pb.WatchEventsResponse:
    """Returns the message of a place in the history, with the change that leads to it."""
    response = pb.WatchEventsResponse(resume_token=str(token))
    if event is not None:
        response.event.type = _EVENT_TYPES[event.kind]
        response.event.resource = event.resource
        response.event.model_version = event.model_version
        response.event.create_time.CopyFrom(_timestamp(event.create_time))
    return response
