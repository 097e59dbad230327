"""The port that all workers listen on."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from modelrail_server.address import Address, BindError

__all__ = ["HeldPort"]


class HeldPort:
    """Keeps a port from others while workers come and go; nobody can connect to it by this.

    Workers bind it with SO_REUSEPORT and listen; the kernel hands connections only to sockets that
    listen.

    Args:
        address: Where the workers shall listen; port 0 takes a free one.

    Raises:
        BindError: Somebody else listens there, or the address is none of this machine.
    """

    def __init__(self, address: Address) -> None:
        with ExitStack() as stack:
            try:
                port = address.port
                for family, host in _hosts(address):
                    port = _free(family, host, port)
                    stack.enter_context(_bound(family, host, port))
            except OSError as error:
                raise BindError(
                    f"cannot listen on {address}: it is taken, or no address of this machine"
                ) from error
            self._sockets = stack.pop_all()
        self.address = address.with_port(port)
        """The address with the port that is held."""

    def close(self) -> None:
        """Lets go of the port."""
        self._sockets.close()


def _hosts(address: Address) -> list[tuple[int, str]]:
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, str(where[0])) for family, _, _, _, where in found))


def _free(family: int, host: str, port: int) -> int:
    """Returns the port if nobody listens on it."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of an earlier run that are in TIME_WAIT are no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
        return int(probe.getsockname()[1])


def _bound(family: int, host: str, port: int) -> socket.socket:
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
        # From here on a probe like the one above fails, also while no worker listens yet.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        held.close()
        raise
    return held
