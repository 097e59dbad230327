"""Who may call which RPC of the registry."""

from __future__ import annotations

from modelrail_server.policy import Permission, Policy

SERVICE = "modelrail.registry.v1.RegistryService"

_READ = (
    "GetModel",
    "ListModels",
    "GetModelVersion",
    "ListModelVersions",
    "GetModelAlias",
    "ListModelAliases",
    "GetBlob",
    "DownloadBlob",
    "WatchEvents",
)
_WRITE = (
    "CreateModel",
    "UpdateModel",
    "CreateModelVersion",
    "UpdateModelAlias",
    "DeleteModelAlias",
    "UploadBlob",
)

# A version of the largest size with its parent and request id, and room for a telling error.
_MAX_REQUEST_BYTES = 2 << 20
REQUEST_LIMITS = {
    f"/{SERVICE}/{method}": _MAX_REQUEST_BYTES
    for method in (*_READ, *_WRITE)
    if method != "UploadBlob"
}
"""Largest requests in bytes, by path; chunks of uploads have a limit of their own."""

POLICY: Policy = {
    **{f"/{SERVICE}/{method}": Permission.READ for method in _READ},
    **{f"/{SERVICE}/{method}": Permission.WRITE for method in _WRITE},
}
