"""The HTTP server that Prometheus reads: `/metrics` and nothing else.

It runs in threads of its own, so that a busy event loop can still be looked at. Scrapers that are
slow, or say nothing, hold no place for long, and none at all that another one needs.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from socketserver import TCPServer
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from modelrail_server.address import Address
from modelrail_server.observability.exposition import CONTENT_TYPE, render

__all__ = ["MetricsServer"]

_CONNECTIONS = 8
_TIMEOUT_SECONDS = 5.0
"""For a request to come whole, and for the answer to be taken."""

_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_PAUSE_SECONDS = 0.1

_log = structlog.get_logger()


class MetricsServer:
    """Serves one registry until `close`.

    Args:
        address: Where to listen; port 0 takes a free one.
        registry: What to show.

    Raises:
        OSError: The address cannot be bound.
    """

    def __init__(self, address: Address, registry: CollectorRegistry) -> None:
        self._server = _Server(address, registry)
        self.address = address.with_port(self._server.server_address[1])
        """The address with the port that was really bound."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening and waits for the thread."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    # A scrape in flight must not hold up the end of the process; its socket has a timeout.
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Address, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.places = _Places(_CONNECTIONS)
        self._reserve: int | None = None
        """A file that is there to be closed when there are no more."""
        self.address_family = AF_INET6 if ":" in address.host else AF_INET
        super().__init__((address.host, address.port), _Handler)
        self.service_actions()

    def get_request(self) -> tuple[Any, Any]:
        """Takes a connection: one also when the process has no file left, to show how it is."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno not in _NO_FILES:
                raise
        self._close_reserve()
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE_SECONDS)  # it would be tried again at once, and keep a CPU busy
            raise

    def service_actions(self) -> None:
        """Keeps a file in reserve; called again and again on the thread that takes connections."""
        if self._reserve is None:
            with suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def server_close(self) -> None:
        """Closes what is open."""
        super().server_close()
        self._close_reserve()

    def _close_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Takes a connection if there is a place for it; threads are memory."""
        if not self.places.enter(request):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started: its place must not stay taken
            self.places.leave(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.leave(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores scrapers that hang up; logs everything else, such as a collector that fails."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            _log.exception("metrics could not be collected")

    def server_bind(self) -> None:
        """Binds without HTTPServer's reverse name lookup, which can take seconds."""
        self.allow_reuse_address = True
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Places:
    """The open connections. One that waits for its scraper gives way to a new one.

    Args:
        most: Connections at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._busy: set[socket.socket] = set()
        self._waiting: dict[socket.socket, None] = {}
        """Those whose request is not here yet, or whose answer is not taken, longest wait first."""

    def enter(self, connection: socket.socket) -> bool:
        """Takes a place, from the one that waits for longest if need be; False: all are busy."""
        with self._lock:
            if len(self._busy) + len(self._waiting) >= self._most:
                shed = next(iter(self._waiting), None)
                if shed is None:
                    return False
                del self._waiting[shed]
                with suppress(OSError):  # its thread wakes up, and ends
                    shed.shutdown(socket.SHUT_RDWR)
            self._waiting[connection] = None
            return True

    def begin(self, connection: socket.socket) -> bool:
        """Its answer is made from now on; False: it has had to give way."""
        with self._lock:
            if connection not in self._waiting:
                return False
            del self._waiting[connection]
            self._busy.add(connection)
            return True

    def wait(self, connection: socket.socket) -> None:
        """Its answer is made, and to be taken from now on."""
        with self._lock:
            self._busy.discard(connection)
            self._waiting[connection] = None

    def leave(self, connection: socket.socket) -> None:
        """Frees its place."""
        with self._lock:
            self._busy.discard(connection)
            self._waiting.pop(connection, None)


class _Received(io.RawIOBase):
    """What a connection receives until a moment in time, on the monotonic clock."""

    def __init__(self, connection: socket.socket, end_seconds: float) -> None:
        self._connection = connection
        self._end_seconds = end_seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_seconds = self._end_seconds - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError
        self._connection.settimeout(left_seconds)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "modelrail"
    sys_version = ""

    def setup(self) -> None:
        """Gives the whole request a time, where a time for each read would have no end."""
        super().setup()
        self.rfile.close()
        end_seconds = time.monotonic() + _TIMEOUT_SECONDS
        self.rfile = io.BufferedReader(_Received(self.connection, end_seconds))

    def do_GET(self) -> None:
        """Answers the metrics in the text format, which every scraper reads."""
        self.connection.settimeout(_TIMEOUT_SECONDS)
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        if not self.server.places.begin(self.connection):
            return
        try:
            body = render(self.server.registry)
        finally:
            self.server.places.wait(self.connection)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the parent's name
        """Writes no line per scrape."""
