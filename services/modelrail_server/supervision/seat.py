"""What a worker is told by the supervisor that starts it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass

__all__ = ["Seat", "take_seat"]

_VARIABLE = "MODELRAIL_WORKER_SEAT"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker's place.

    Attributes:
        number: Which of the workers it is, from 0.
        supervisor_pid: Process that started it.
        descriptor: The worker's end of the control channel, inherited.
        grpc_address: Where all workers listen.
        heartbeat_seconds: How often the worker says that it lives.
    """

    number: int
    supervisor_pid: int
    descriptor: int
    grpc_address: str
    heartbeat_seconds: float

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Returns the environment to start the worker with."""
        return {**environ, _VARIABLE: json.dumps(asdict(self))}


def take_seat() -> Seat | None:
    """Returns this process's seat, and ties its life to the supervisor's; None: it is no worker.

    Programs that the worker starts are no workers: the variable is taken out, and they do not
    inherit the control channel.

    Raises:
        OSError: The kernel refuses.
        SystemExit: The supervisor is gone already.
    """
    text = os.environ.pop(_VARIABLE, None)
    if text is None:
        return None
    seat = Seat(**json.loads(text))
    os.set_inheritable(seat.descriptor, False)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # The kernel sends nothing for a death before that.
    if os.getppid() != seat.supervisor_pid:
        raise SystemExit("the supervisor that started this worker is gone")
    return seat
