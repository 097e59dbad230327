"""What the process was started with, as it finds it."""

from __future__ import annotations

import os
from collections.abc import Collection

from modelrail_trainer.isolation.layer import Layer, LayerName

# Shells, Python and this package set these themselves.
_OF_PROGRAMS = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", "GRPC_ENABLE_FORK_SUPPORT"})


def look_around(variables: Collection[str]) -> list[Layer]:
    """Tells whether this process is apart from its parent.

    Args:
        variables: Names of the environment variables that it was given on purpose.
    """
    leads = os.getsid(0) == os.getpid()
    strange = sorted(set(os.environ) - set(variables) - _OF_PROGRAMS)
    return [
        Layer(
            LayerName.SESSION,
            leads,
            "leads a session of its own" if leads else "shares the session of its parent",
        ),
        Layer(
            LayerName.CLEAN_ENVIRONMENT,
            not strange,
            f"sees {', '.join(strange)} as well" if strange else "sees what it needs",
        ),
    ]
