"""What a process is told by the supervisor that starts it: how to reach it, and later its seat.

Every worker gets its seat over the control channel, whether it was started for the seat or has
waited for one as the spare.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from modelrail_server.supervision.frame import encode_frame, receive_frame

__all__ = ["Parent", "Seat", "find_parent"]

_VARIABLE = "MODELRAIL_SUPERVISOR"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker's place.

    Attributes:
        number: Which of the workers it is, from 0.
        grpc_address: Where all workers listen.
        replacement: Whether siblings may serve already.
        orders: The last order for each subject that was given before this worker came.
        descriptor: The worker's end of the control channel.
        heartbeat_seconds: How often the worker says that it lives.
    """

    number: int
    grpc_address: str
    replacement: bool
    orders: Mapping[str, str]
    descriptor: int
    heartbeat_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The supervisor, as a process sees it that it has started.

    Attributes:
        pid: Its process.
        descriptor: This process's end of the control channel, inherited.
        heartbeat_seconds: How often it is told that this process lives.
    """

    pid: int
    descriptor: int
    heartbeat_seconds: float

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Returns the environment to start the process with."""
        return {**environ, _VARIABLE: json.dumps(asdict(self))}

    def wait_for_seat(self) -> Seat:
        """Says that this process is ready, and again and again that it lives, until it has a seat.

        Raises:
            SystemExit: The supervisor is gone.
        """
        alive = encode_frame({"method": "alive", "arguments": {}})
        told = None
        # The event loop takes the descriptor over later, and must then find it open.
        with socket.socket(fileno=os.dup(self.descriptor)) as channel:
            try:
                channel.sendall(alive)
                while not select.select([channel], [], [], self.heartbeat_seconds)[0]:
                    channel.sendall(alive)
                told = receive_frame(channel)
            except ConnectionError:
                pass
        if told is None:
            raise SystemExit("the supervisor that started this process is gone")
        return Seat(
            **told["arguments"],
            descriptor=self.descriptor,
            heartbeat_seconds=self.heartbeat_seconds,
        )


def find_parent() -> Parent | None:
    """Returns this process's supervisor, and ties its life to that; None: it has none.

    Programs that a worker starts have none: the variable is taken out, and they do not inherit the
    control channel.

    Raises:
        OSError: The kernel refuses.
        SystemExit: The supervisor is gone already.
    """
    text = os.environ.pop(_VARIABLE, None)
    if text is None:
        return None
    parent = Parent(**json.loads(text))
    os.set_inheritable(parent.descriptor, False)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # The kernel sends nothing for a death before that.
    if os.getppid() != parent.pid:
        raise SystemExit("the supervisor that started this process is gone")
    return parent
