"""What the process was started with, as it finds it."""

from __future__ import annotations

import os
from collections.abc import Collection

from modelrail_trainer.isolation.guard import JOB_PROCESS
from modelrail_trainer.isolation.layer import Layer, LayerName

# Shells, Python and this package set these themselves.
_OF_PROGRAMS = frozenset(
    {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", "GRPC_ENABLE_FORK_SUPPORT", JOB_PROCESS}
)


def look_around(variables: Collection[str], *, guarded: bool) -> list[Layer]:
    """Tells whether this process is apart from the trainer.

    Args:
        variables: Names of the environment variables that it was given on purpose.
        guarded: Whether what it leaves behind falls to its guard.
    """
    apart = os.getsid(0) == os.getppid()  # the guard leads the session
    ends = (
        "with all that it starts (PR_SET_CHILD_SUBREAPER)"
        if guarded
        else "but not with what leaves its session"
    )
    strange = sorted(set(os.environ) - set(variables) - _OF_PROGRAMS)
    return [
        Layer(
            LayerName.SESSION,
            apart,
            f"has a session of its own, and ends {ends}"
            if apart
            else "shares the session of the trainer",
        ),
        Layer(
            LayerName.CLEAN_ENVIRONMENT,
            not strange,
            f"sees {', '.join(strange)} as well" if strange else "sees what it needs",
        ),
    ]
