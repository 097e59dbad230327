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

POLICY: Policy = {
    **{f"/{SERVICE}/{method}": Permission.READ for method in _READ},
    **{f"/{SERVICE}/{method}": Permission.WRITE for method in _WRITE},
}
