"""The HTTP server that Prometheus reads: `/metrics` and nothing else.

It runs in threads of its own, so that a busy event loop can still be looked at.
"""

from __future__ import annotations

import sys
import threading
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
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self.address_family = AF_INET6 if ":" in address.host else AF_INET
        super().__init__((address.host, address.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Takes a connection if not too many are open; threads are memory."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started: its place must not stay taken
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores scrapers that hang up; logs everything else, such as a collector that fails."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            _log.exception("metrics could not be collected")

    def server_bind(self) -> None:
        """Binds without HTTPServer's reverse name lookup, which can take seconds."""
        self.allow_reuse_address = True
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "modelrail"
    sys_version = ""
    timeout = _TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Answers the metrics in the text format, which every scraper reads."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = render(self.server.registry)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the parent's name
        """Writes no line per scrape."""
