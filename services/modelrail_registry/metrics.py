"""What the registry counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class RegistryMetrics:
    """Metrics of the registry's own work; those of the RPCs belong to the server.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.versions_created = Counter(
            "modelrail_registry_versions_created",
            "CreateModelVersion calls that were answered with a version.",
            registry=registry,
        )
        self.blob_received = Counter(
            "modelrail_registry_blob_received_bytes", "Bytes of blobs received.", registry=registry
        )
        self.blob_sent = Counter(
            "modelrail_registry_blob_sent_bytes", "Bytes of blobs sent.", registry=registry
        )
        self.uploads_expired = Counter(
            "modelrail_registry_uploads_expired",
            "Unfinished uploads that were removed.",
            registry=registry,
        )
        self.watchers = Gauge(
            "modelrail_registry_watchers", "Watch streams that are open.", registry=registry
        )
