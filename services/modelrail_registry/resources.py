"""The resources of the registry as plain values: what the domain takes, keeps and returns."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from modelrail.names import ModelAliasName, ModelName, ModelVersionName

ONNX_MEDIA_TYPE = "application/onnx"
MODEL_FILE = "model.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A named line of versions."""

    name: ModelName
    uid: str
    description: str
    labels: Mapping[str, str]
    latest_version_number: int
    create_time: datetime
    update_time: datetime
    etag: str


@dataclass(frozen=True, slots=True)
class File:
    """One file of a version; the content is found by its digest, never by its path."""

    path: str
    sha256: str
    size_bytes: int
    media_type: str = ""

    @property
    def is_onnx(self) -> bool:
        """Whether the file claims to be an ONNX graph, by its name or by its media type."""
        return self.path.lower().endswith(".onnx") or self.media_type == ONNX_MEDIA_TYPE


@dataclass(frozen=True, slots=True)
class ValueRange:
    """An interval of values."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type, shape and meaning of one tensor; a dimension is a size or a name."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]
    meaning: str = ""
    value_range: ValueRange | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes into a model and what comes out, in the order of the graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One quality figure, in the unit of the metric."""

    name: str
    value: float
    split: str = ""
    runtime: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a version comes from."""

    training_job: str = ""
    dataset: str = ""
    dataset_sha256: str = ""
    spec_sha256: str = ""
    seed: int = 0
    packages: Mapping[str, str] = field(default_factory=dict)
    parent_version: str = ""
    hardware: str = ""


@dataclass(frozen=True, slots=True)
class OutputParity:
    """The worst absolute difference of one output, in the unit of the output."""

    name: str
    max_absolute_difference: float


@dataclass(frozen=True, slots=True)
class ExportAttempt:
    """One way of exporting that was tried; `failure` is empty for the one that passed."""

    method: str
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCertificate:
    """The comparison between the training framework's model and the exported file."""

    opset: int
    absolute_tolerance: float
    relative_tolerance: float
    batch_sizes: tuple[int, ...]
    outputs: tuple[OutputParity, ...]
    rows: int
    tools: Mapping[str, str] = field(default_factory=dict)
    attempts: tuple[ExportAttempt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionContent:
    """What the publisher says about a version. It never changes afterwards."""

    files: tuple[File, ...]
    signature: Signature | None = None
    metrics: tuple[Metric, ...] = ()
    lineage: Lineage | None = None
    certificate: ExportCertificate | None = None
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A published version: there is no other kind."""

    name: ModelVersionName
    uid: str
    content: VersionContent
    create_time: datetime
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAlias:
    """A pointer to a version that can be moved."""

    name: ModelAliasName
    version: ModelVersionName
    create_time: datetime
    update_time: datetime
    etag: str


class EventKind(enum.Enum):
    """Kinds of committed changes; the values are what the database keeps."""

    MODEL_CREATED = "model_created"
    MODEL_UPDATED = "model_updated"
    VERSION_CREATED = "version_created"
    ALIAS_MOVED = "alias_moved"
    ALIAS_DELETED = "alias_deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One committed change and its place in the history."""

    sequence: int
    kind: EventKind
    resource: str
    model_version: str
    create_time: datetime
