"""Azurite, Microsoft's emulator of Azure Blob Storage, for tests: its own server on a free port."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

ACCOUNT = "modelrail"
KEY = base64.b64encode(b"the-key-of-the-account").decode()
_VERSION = "2023-11-03"  # of the protocol: the one that obstore speaks
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")
# What a relay says itself.
_OWN_HEADERS = {"connection", "date", "keep-alive", "server", "transfer-encoding"}


def shared_access_signature(key: str = KEY, permissions: str = "rwdlc") -> str:
    """Returns the query of an account SAS, which opens every container to whoever has it.

    See "Create an account SAS" of Azure Storage's REST reference.
    """
    fields = {
        "sv": "2020-12-06",
        "ss": "b",
        "srt": "sco",
        "sp": permissions,
        "se": "2099-01-01T00:00:00Z",
        "spr": "https,http",
    }
    named = [fields[name] for name in ("sp", "ss", "srt")]
    to_sign = "\n".join(
        [ACCOUNT, *named, "", fields["se"], "", fields["spr"], fields["sv"], "", ""]
    )
    digest = hmac.new(base64.b64decode(key), to_sign.encode(), hashlib.sha256).digest()
    return urlencode(fields | {"sig": base64.b64encode(digest).decode()})


@dataclass(frozen=True)
class Azurite:
    """A running server.

    Attributes:
        port: Where it listens.
    """

    port: int

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """Returns its status, headers and body for a request that is sent as it is."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            told = {
                name.lower(): value
                for name, value in response.getheaders()
                if name.lower() not in _OWN_HEADERS
            }
            return response.status, told, response.read()

    def command(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Does what only the owner of the account may, and returns the answer."""
        target = f"/{ACCOUNT}/{quote(path)}?{urlencode(query or {})}&{shared_access_signature()}"
        fixed = {
            "Host": "127.0.0.1",
            "Content-Length": str(len(body)),
            "x-ms-version": _VERSION,
        }
        status, _, answer = self.answer(method, target, {**fixed, **(headers or {})}, body)
        if status == 404:
            raise KeyError(path)
        assert status < 300, (status, answer)
        return answer


def _read(answer: bytes) -> ET.Element:
    return ET.fromstring(answer)  # noqa: S314  # of a server that the tests started


class Blobs(MutableMapping[str, bytes]):
    """The blobs of a server, by `container/name`.

    Args:
        server: The server.
        containers: Those that it has from now on, empty.
    """

    def __init__(self, server: Azurite, *containers: str) -> None:
        self._server = server
        self._containers = containers
        there = server.command("GET", "", {"comp": "list"})
        known = {name.text for name in _read(there).iterfind("Containers/Container/Name")}
        for container in containers:
            if container not in known:
                server.command("PUT", container, {"restype": "container"})
        self.clear()

    def __setitem__(self, name: str, content: bytes) -> None:
        self._server.command("PUT", name, body=content, headers={"x-ms-blob-type": "BlockBlob"})

    def __getitem__(self, name: str) -> bytes:
        return self._server.command("GET", name)

    def __delitem__(self, name: str) -> None:
        self._server.command("DELETE", name)

    def __iter__(self) -> Iterator[str]:
        listing = {"restype": "container", "comp": "list"}
        for container in self._containers:
            listed = self._server.command("GET", container, listing)
            for name in _read(listed).iterfind("Blobs/Blob/Name"):
                yield f"{container}/{name.text}"

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def clear(self) -> None:
        for name in list(self):
            del self[name]


@contextmanager
def azurite_server() -> Iterator[Azurite]:
    """Runs a server for as long as the context is open; skips where there is no Azurite."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not on this machine: npm install azurite, and add it to PATH")
    folder = Path(tempfile.mkdtemp(prefix="azurite-"))
    command = [
        *(program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"),
        *("--silent", "--disableTelemetry", "--disableProductStyleUrl"),
    ]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if (listens := _LISTENS.search(line)) is not None:
                yield Azurite(int(listens[1]))
                break
        else:
            pytest.fail(f"Azurite did not start: {''.join(said)}")
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(folder)
