"""The settings of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelrail_server.config import ServerConfig, setting

__all__ = ["RegistryConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig(ServerConfig):
    """Where the registry keeps things, and how much of them."""

    grpc_address: str = setting(
        "127.0.0.1:8011", "Address for gRPC: HOST:PORT (port 0: a free one) or unix:PATH."
    )
    metrics_address: str = setting("127.0.0.1:8012", "Address for Prometheus, path /metrics.")
    data_dir: Path = setting(
        Path(".modelrail/registry"), "Folder for the database, the blobs and unfinished uploads."
    )
    max_blob_bytes: int = setting(2 << 30, "Largest blob in bytes.", minimum=1, maximum=1 << 42)
    upload_expiry_seconds: float = setting(
        86400.0, "Seconds after its last byte when an unfinished upload is removed.", minimum=60
    )
    upload_idle_seconds: float = setting(
        60.0, "Seconds without a header or chunk after which an upload stream is ended.", minimum=1
    )
    download_idle_seconds: float = setting(
        60.0,
        "Seconds in which a reader takes nothing after which a download stream is ended.",
        minimum=0.1,
    )
    upload_sweep_seconds: float = setting(
        3600.0, "Seconds between two searches for unfinished uploads.", minimum=1
    )
    disk_threads: int = setting(
        8, "Uploads and downloads that touch the disk at a time.", minimum=1
    )
    database_threads: int = setting(4, "Calls that touch the database at a time.", minimum=1)
    admission_processes: int = setting(2, "Model files that are examined at a time.", minimum=1)
    admission_cpu_seconds: int = setting(
        60, "CPU seconds for the examination of one model file.", minimum=1
    )
    admission_wall_seconds: float = setting(
        120.0, "Seconds for the examination of one model file.", minimum=1
    )
