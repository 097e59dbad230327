"""Signature, metrics, lineage and certificate as JSON text, as the database keeps them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from modelrail_registry.resources import (
    ExportAttempt,
    ExportCertificate,
    File,
    Lineage,
    Metric,
    OutputParity,
    Signature,
    TensorSpec,
    ValueRange,
    VersionContent,
)


def dump_signature(signature: Signature) -> str:
    """Returns the JSON text of a signature."""
    return _dump(dataclasses.asdict(signature))


def load_signature(text: str) -> Signature:
    """Reads what `dump_signature` wrote."""
    return _signature(json.loads(text))


def dump_content(content: VersionContent) -> str:
    """Returns the JSON text of everything but the files, which have a table of their own."""
    document = dataclasses.asdict(dataclasses.replace(content, files=()))
    del document["files"]
    return _dump(document)


def load_content(text: str, files: tuple[File, ...]) -> VersionContent:
    """Reads what `dump_content` wrote and puts the files back."""
    document = json.loads(text)
    signature, lineage, certificate = (
        document[key] for key in ("signature", "lineage", "certificate")
    )
    return VersionContent(
        files=files,
        signature=None if signature is None else _signature(signature),
        metrics=tuple(Metric(**metric) for metric in document["metrics"]),
        lineage=None if lineage is None else Lineage(**lineage),
        certificate=None if certificate is None else _certificate(certificate),
        description=document["description"],
    )


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _signature(document: dict[str, Any]) -> Signature:
    return Signature(
        inputs=tuple(_tensor(tensor) for tensor in document["inputs"]),
        outputs=tuple(_tensor(tensor) for tensor in document["outputs"]),
    )


def _tensor(document: dict[str, Any]) -> TensorSpec:
    value_range = document.get("value_range")
    return TensorSpec(
        name=document["name"],
        datatype=document["datatype"],
        shape=tuple(document["shape"]),
        meaning=document.get("meaning", ""),
        value_range=None if value_range is None else ValueRange(**value_range),
        labels=tuple(document.get("labels", ())),
    )


def _certificate(document: dict[str, Any]) -> ExportCertificate:
    return ExportCertificate(
        opset=document["opset"],
        absolute_tolerance=document["absolute_tolerance"],
        relative_tolerance=document["relative_tolerance"],
        batch_sizes=tuple(document["batch_sizes"]),
        outputs=tuple(OutputParity(**parity) for parity in document["outputs"]),
        rows=document["rows"],
        # Versions of earlier programs have neither.
        tools=document.get("tools", {}),
        attempts=tuple(ExportAttempt(**attempt) for attempt in document.get("attempts", ())),
    )
