"""Who may call what: one row per RPC, and no row means no.

The table is an exact match on the path that is on the wire. Nothing is normalised: the paths
`/a.B/Get`, `//a.B/Get` and `/a.B/Get/` are three different strings, and gRPC dispatches only the
first.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ANONYMOUS", "OWNER", "Identity", "Permission", "Policy"]


class Permission(enum.Enum):
    """What a caller must hold to call an RPC. No permission implies another one."""

    PUBLIC = "public"
    """Everybody, also without a key: health and liveness."""
    READ = "read"
    """Read resources and watch them."""
    WRITE = "write"
    """Create and change resources."""
    INFER = "infer"
    """Send tensors to a model."""
    ADMIN = "admin"
    """Load and unload models, and what else changes a server as a whole."""


Policy = Mapping[str, Permission]
"""`/package.Service/Method` to the permission that the method asks for."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller of an RPC: the id of its key, and what it may do."""

    name: str
    permissions: frozenset[Permission]


OWNER = Identity("owner", frozenset(Permission))
"""Every caller of a server without keys; it listens on loopback, or `--insecure` says otherwise."""

ANONYMOUS = Identity("anonymous", frozenset({Permission.PUBLIC}))
"""A caller of a public RPC, whose key is not looked at."""
