"""Who may call what. Liveness and readiness are public, so that probes need no key."""

from __future__ import annotations

from typing import Final

from modelrail_server.policy import Permission, Policy

SERVICE: Final = "inference.GRPCInferenceService"
"""Name on the wire; the Python messages live in a proto package of their own."""

POLICY: Final[Policy] = {
    f"/{SERVICE}/{method}": permission
    for permission, methods in {
        Permission.PUBLIC: ("ServerLive", "ServerReady"),
        Permission.READ: (
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
        ),
        Permission.INFER: (
            "ModelInfer",
            "ModelStreamInfer",
            "SystemSharedMemoryUnregister",
            "CudaSharedMemoryUnregister",
        ),
        Permission.ADMIN: (
            "RepositoryModelLoad",
            "RepositoryModelUnload",
            "SystemSharedMemoryStatus",
            "SystemSharedMemoryRegister",
            "CudaSharedMemoryStatus",
            "CudaSharedMemoryRegister",
            "TraceSetting",
            "LogSettings",
        ),
    }.items()
    for method in methods
}

ALWAYS_ANSWERED: Final = frozenset(
    f"/{SERVICE}/{method}" for method in ("ModelReady", "ServerMetadata", "ModelMetadata")
)
"""Beside the public methods: how the server is can be asked while it has too many calls."""

RAW_METHODS: Final = frozenset({f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"})
"""The hot path: their messages are read and written by `protocol/wire.py`."""
