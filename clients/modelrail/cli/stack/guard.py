"""Becomes a service that does not outlive the command line, even when that is killed.

`python -m modelrail.cli.stack.guard PARENT_PID MODULE [ARGUMENT ...]`. The kernel's parent-death
signal survives `exec`, so the service itself need not know of it. A start through `preexec_fn`
would do the same, but runs Python between fork and exec, which is unsafe beside gRPC's threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Asks for the signal, makes sure that it was not too late, and becomes the service."""
    parent, module, *arguments = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        raise SystemExit("the process that asked for this service is gone")
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # no shell


if __name__ == "__main__":
    main()
