"""An object store for tests: what S3 answers to HEAD, GET and lists, and trouble as wanted."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

import pytest


@dataclass
class ObjectStore:
    """Objects by `bucket/key`.

    Attributes:
        objects: Their content.
        bare_tags: Whether lists give tags without their quotes, as those of Azure do.
        page: How many objects a list has at most, before the next must be asked for.
        trouble: Asked for each request, with `METHOD bucket/key` and the number of the request from
            1, for a status to answer instead, or for how many bytes of the body are sent before the
            connection breaks off (a negative number).
        requests: What was asked for; `LIST bucket/prefix` for a list.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    bare_tags: bool = False
    page: int = 1000
    trouble: Callable[[str, int], int] = lambda request, number: 0
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _listed(store: ObjectStore, prefix: str, asked_for: dict[str, str]) -> bytes:
    """Returns the answer of ListObjectsV2 about what begins with `bucket/prefix`."""
    bucket = prefix.partition("/")[0]
    after = asked_for.get("continuation-token", asked_for.get("start-after", ""))
    names = sorted(name for name in list(store.objects) if name.startswith(prefix))
    names = [name for name in names if name > f"{bucket}/{after}"]
    tags = {name: _tag(store.objects[name]) for name in names}
    if store.bare_tags:
        tags = {name: tag.strip('"') for name, tag in tags.items()}
    rows = "".join(
        f"<Contents><Key>{escape(name.removeprefix(f'{bucket}/'))}</Key>"
        f"<Size>{len(store.objects[name])}</Size><ETag>{escape(tags[name])}</ETag>"
        "<LastModified>2026-11-26T00:00:00.000Z</LastModified></Contents>"
        for name in names[: store.page]
    )
    more = ""
    if len(names) > store.page:
        last = names[store.page - 1].removeprefix(f"{bucket}/")
        more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
    is_cut = "true" if more else "false"
    return (
        f"<ListBucketResult><IsTruncated>{is_cut}</IsTruncated>{rows}{more}</ListBucketResult>"
    ).encode()


def _handler(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            asked_for = {key: values[-1] for key, values in parse_qs(query).items()}
            name, method = unquote(path.lstrip("/")), self.command
            if "list-type" in asked_for:
                name, method = f"{name.rstrip('/')}/{asked_for.get('prefix', '')}", "LIST"
            with lock:
                store.requests.append(f"{method} {name}")
                store.headers.append(dict(self.headers))
                number = len(store.requests)
            trouble = store.trouble(store.requests[number - 1], number)
            if method == "LIST" and trouble <= 0:
                body = _listed(store, name, asked_for)
                headers = {"Content-Type": "application/xml"}
                self._answer(200, body, headers, sent=len(body) if trouble == 0 else -trouble)
                return
            content = store.objects.get(name)
            if trouble > 0 or content is None:
                self._answer(trouble or 404, b"", {})
                return
            tag = _tag(content)
            if self.headers.get("If-Match", tag) != tag:
                self._answer(412, b"", {})
                return
            headers = {"ETag": tag, "Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT"}
            status, part = 200, content
            if (asked := self.headers.get("Range")) is not None:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                part = content[int(first) : int(last) + 1]
                end = int(first) + len(part) - 1
                headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
                status = 206
            self._answer(status, part, headers, sent=len(part) if trouble == 0 else -trouble)

        def _answer(
            self, status: int, body: bytes, headers: dict[str, str], *, sent: int | None = None
        ) -> None:
            with suppress(ConnectionError):  # whoever asked may have given up
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[:sent])
            if sent is not None and sent < len(body):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


@contextmanager
def object_store(patch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Runs a store, to which the environment leads `s3://` while the context is open."""
    store = ObjectStore()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    patch.setenv("AWS_ALLOW_HTTP", "true")
    patch.setenv("AWS_REGION", "here-1")
    patch.setenv("AWS_ACCESS_KEY_ID", "the-key-id")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


WAIT_SECONDS = 60.0
"""Longest wait of a test for anything; no figure of speed."""


async def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds that the server's threads tell nobody of."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Held:
    """A store that answers no request of a kind before it is let go.

    Args:
        store: What is held.
        kind: How the requests begin.
    """

    def __init__(self, store: ObjectStore, kind: str = "GET") -> None:
        self._go = threading.Event()
        self._store = store
        self._kind = kind
        store.trouble = self._wait

    def _wait(self, request: str, number: int) -> int:
        del number
        if request.startswith(self._kind):
            self._go.wait(WAIT_SECONDS)
        return 0

    async def asked(self) -> None:
        """Waits for a request of the kind."""
        await until(lambda: any(one.startswith(self._kind) for one in self._store.requests))

    def let_go(self) -> None:
        """Answers from now on."""
        self._go.set()
