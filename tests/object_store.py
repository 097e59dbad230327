"""Object stores for tests: S3's and Google's answers, a real Azurite, and trouble as wanted."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

import pytest

from tests.azurite import ACCOUNT, KEY, Azurite, Blobs, shared_access_signature
from tests.service_account import service_account

_STRANGERS_KEY = base64.b64encode(b"the-key-of-a-stranger").decode()
SCHEMES = ("s3", "gs", "az")
on_every_store = pytest.mark.parametrize("store", SCHEMES, indirect=True)
"""Runs a test on a store of each kind, where the fixture `store` comes from `store_of`."""


@dataclass
class ObjectStore:
    """Objects by `bucket/key`.

    Attributes:
        scheme: Of the URIs that lead to it.
        objects: Their content.
        buckets: Names of the buckets that are there.
        bare_tags: Whether lists give tags without their quotes, as those of Azure do.
        page: How many objects a list has at most, before the next must be asked for.
        trouble: Asked for each request, with `METHOD bucket/key` and the number of the request from
            1, for a status to answer instead, or for how many bytes of the body are sent before the
            connection breaks off (a negative number).
        requests: What was asked for; `LIST bucket/prefix` for a list.
        headers: Of the same requests.
        address: Where it is.
        friends: Environment of whoever may read.
        strangers: Environment of somebody whom the store does not let in.
        nowhere: Environment that leads to where no store is.
        secrets: What nobody but the store and the trainer may ever see.
    """

    scheme: str = "s3"
    objects: MutableMapping[str, bytes] = field(default_factory=dict)
    buckets: tuple[str, ...] = ("data",)
    bare_tags: bool = False
    page: int = 1000
    trouble: Callable[[str, int], int] = lambda request, number: 0
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    address: str = ""
    friends: Mapping[str, str] = field(default_factory=dict)
    strangers: Mapping[str, str] = field(default_factory=dict)
    nowhere: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()

    def uri(self, key: str) -> str:
        """Returns the URI of a key, or of a folder of keys, in the bucket `data`."""
        return f"{self.scheme}://data/{key}"


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
        method: GET, HEAD, POST or LIST.
        name: `bucket/key`, or `bucket/prefix` of a list.
        asked_for: The fields of the query.
        target: The path with its query, as it came.
        headers: By their names in small letters.
    """

    method: str
    name: str
    asked_for: Mapping[str, str]
    target: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What it gets; the length of the body is told of the body, where the headers do not."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _refused(store: ObjectStore, request: Request) -> int | None:
    """Returns the status for whoever is not let in.

    Of the signatures Google's is looked at, and of S3's only whose it is.
    """
    authorization = request.headers.get("authorization", "")
    if store.scheme == "gs":
        return None if service_account("trainer").signed(authorization) else 401
    return None if "Credential=the-key-id/" in authorization else 403


def _answer(store: ObjectStore, request: Request) -> Answer:
    """Answers as S3 does, or Google's store, whose XML API is the same but for its headers."""
    if (status := _refused(store, request)) is not None:
        return Answer(status)
    if request.name.partition("/")[0] not in store.buckets:
        return Answer(404)
    if request.method == "LIST":
        body = _listed(store, request.name, request.asked_for)
        return Answer(200, body, {"Content-Type": "application/xml"})
    content = store.objects.get(request.name)
    return Answer(404) if content is None else _found(store, content, request)


def _found(store: ObjectStore, content: bytes, request: Request) -> Answer:
    """Returns an object, or the part of it that is asked for, unless it is not the one wanted."""
    tag = _tag(content)
    if request.headers.get("if-match", tag) != tag:
        return Answer(412)
    headers = {"ETag": tag, "Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT"}
    if store.scheme == "gs":
        headers["x-goog-generation"] = str(int(tag.strip('"')[:12], 16))
    if (asked := request.headers.get("range")) is None:
        return Answer(200, content, headers)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    part = content[int(first) : int(last) + 1]
    headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
    return Answer(206, part, headers)


def _listed(store: ObjectStore, prefix: str, asked_for: Mapping[str, str]) -> bytes:
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


def _azurite(server: Azurite, store: ObjectStore, request: Request) -> Answer:
    """Hands a request on as it came, so that the signature in it is for Azurite to judge."""
    target = request.target
    if request.method == "LIST" and store.page < 1000:
        target += f"&maxresults={store.page}"  # which no SAS signs
    method = "HEAD" if request.method == "HEAD" else "GET"
    status, headers, body = server.answer(method, target, request.headers)
    return Answer(status, body, headers)


def _handler(
    store: ObjectStore, answer: Callable[[Request], Answer]
) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            """Answers whoever asks for a token."""
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def do_GET(self) -> None:
            request = self._request()
            with lock:
                said = f"{request.method} {request.name}"
                store.requests.append(said)
                store.headers.append(dict(self.headers))
                number = len(store.requests)
            trouble = store.trouble(said, number)
            if trouble > 0:
                self._send(Answer(trouble))
                return
            told = answer(request)
            is_cut = trouble < 0 and told.status < 300
            self._send(told, sent=-trouble if is_cut else None)

        def _request(self) -> Request:
            path, _, query = self.path.partition("?")
            asked_for = {key: values[-1] for key, values in parse_qs(query).items()}
            name, method = unquote(path.lstrip("/")).removeprefix(f"{ACCOUNT}/"), self.command
            if "list-type" in asked_for or asked_for.get("comp") == "list":
                name, method = f"{name.rstrip('/')}/{asked_for.get('prefix', '')}", "LIST"
            headers = {name.lower(): value for name, value in self.headers.items()}
            return Request(method, name, asked_for, self.path, headers)

        def _send(self, answer: Answer, *, sent: int | None = None) -> None:
            with suppress(ConnectionError):  # whoever asked may have given up
                self.send_response(answer.status)
                length = {"content-length": str(len(answer.body))}
                for name, value in (length | dict(answer.headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body[:sent])
            if sent is not None and sent < len(answer.body):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


def _environment(scheme: str, port: int, *, stranger: bool = False) -> dict[str, str]:
    """Returns what an operator sets for a store at a port, and for whom it is."""
    address = f"http://127.0.0.1:{port}"
    if scheme == "gs":
        account = service_account("stranger" if stranger else "trainer")
        return {"GOOGLE_SERVICE_ACCOUNT_KEY": account.key_file(address)}
    if scheme == "az":
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_ENDPOINT": f"{address}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
            "AZURE_STORAGE_SAS_TOKEN": shared_access_signature(_STRANGERS_KEY if stranger else KEY),
        }
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "here-1",
        "AWS_ACCESS_KEY_ID": "the-key-id-of-a-stranger" if stranger else "the-key-id",
        "AWS_SECRET_ACCESS_KEY": "the-secret-key",
    }


def _secrets(scheme: str) -> tuple[str, ...]:
    """Returns what is secret in the environments of the trainer and of a stranger."""
    if scheme == "gs":
        keys = [service_account(name).private_key for name in ("trainer", "stranger")]
        return tuple(line for key in keys for line in key.splitlines()[1:-1])
    if scheme == "az":
        signed = [shared_access_signature(key) for key in (KEY, _STRANGERS_KEY)]
        signatures = [one.rpartition("sig=")[2] for one in signed]
        return (KEY, _STRANGERS_KEY, *signatures, *map(unquote, signatures))
    return ("the-secret-key",)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # as many as are asked for at once


@contextmanager
def object_store(
    patch: pytest.MonkeyPatch, scheme: str = "s3", azurite: Azurite | None = None
) -> Iterator[ObjectStore]:
    """Runs a store, to which the environment leads while the context is open.

    Args:
        patch: Of the environment.
        scheme: Of the URIs that lead there.
        azurite: Has the objects, and answers, where the scheme is `az`.
    """
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and nobody listens
        store = ObjectStore(
            scheme, secrets=_secrets(scheme), nowhere=_environment(scheme, deaf.getsockname()[1])
        )
        answer = partial(_answer, store)
        if azurite is not None:
            store.objects = Blobs(azurite, *store.buckets)
            answer = partial(_azurite, azurite, store)
        server = _Server(("127.0.0.1", 0), _handler(store, answer))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        store.address = f"http://127.0.0.1:{server.server_port}"
        store.strangers = _environment(scheme, server.server_port, stranger=True)
        store.friends = _environment(scheme, server.server_port)
        for name, value in store.friends.items():
            patch.setenv(name, value)
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def store_of(request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Runs the store that a test is for, which is S3's where it does not say so."""
    scheme = getattr(request, "param", "s3")
    azurite = request.getfixturevalue("azurite") if scheme == "az" else None
    with object_store(patch, scheme, azurite) as store:
        yield store


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
