"""The one place that speaks with object stores, through obstore.

Credentials and endpoints come from the environment of the service, as its library reads them
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_KEY` and
so on). Messages of the library name hosts, and may hold signatures, so none of them goes further
than the log, and not even there what follows a question mark.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

import obstore
import obstore.exceptions
import obstore.store
import structlog

from modelrail_trainer.execution.patience import Backoff

T = TypeVar("T")
PART_BYTES = 8 << 20
"""Bytes that are asked for at a time, and are in memory."""
_ATTEMPTS = 6
_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.2, 10.0
_QUERY = re.compile(r"\?[^\s\"')]+")
_CHANGED = "it was replaced while it was read; clone the job when nobody writes it any more"
# What asking again does not change, and what the owner of the job is told of it.
_FINAL: dict[type[Exception], str] = {
    FileNotFoundError: "there is no such object",
    obstore.exceptions.PermissionDeniedError: "the trainer may not read it; have its credentials "
    "looked at",
    obstore.exceptions.UnauthenticatedError: "the store does not know the trainer; have its "
    "credentials looked at",
    obstore.exceptions.PreconditionError: _CHANGED,
    obstore.exceptions.InvalidPathError: "the store knows no such name",
}
_log = structlog.get_logger(__name__)


class ObjectError(Exception):
    """An object cannot be had; the message is for the owner of the job."""


class Unreachable(ObjectError):
    """The store did not answer, or only with errors of its own; later it may."""


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """What a store said that an object is.

    Attributes:
        uri: Its URI.
        size_bytes: How large it is.
        tag: Of this very content, where the store has such.
    """

    uri: str
    size_bytes: int
    tag: str | None


class ObjectReader:
    """Reads objects in parts, each as often as it takes.

    Args:
        pause: Waits so many seconds, between two attempts.
    """

    def __init__(self, pause: Callable[[float], Awaitable[None]]) -> None:
        self._pause = pause

    async def look(self, uri: str) -> ObjectVersion:
        """Returns what there is.

        Raises:
            ObjectError: There is no such object, or it may not be read.
        """
        store, key = _open(uri)
        found = await self._persist(uri, lambda: obstore.head_async(store, key))
        return ObjectVersion(uri, found["size"], found["e_tag"])

    async def parts(self, version: ObjectVersion) -> AsyncIterator[bytes]:
        """Yields the content from beginning to end.

        Raises:
            ObjectError: It changed since it was looked at, is gone, or may not be read.
        """
        store, key = _open(version.uri)

        async def part(start: int, end: int) -> bytes:
            options: obstore.GetOptions = {"range": (start, end)}
            if version.tag is not None:
                options["if_match"] = version.tag
            response = await obstore.get_async(store, key, options=options)
            return bytes(await response.bytes_async())

        for start in range(0, version.size_bytes, PART_BYTES):
            end = min(start + PART_BYTES, version.size_bytes)
            content = await self._persist(version.uri, partial(part, start, end))
            if len(content) != end - start:
                raise ObjectError(_CHANGED)
            yield content

    async def _persist(self, uri: str, ask: Callable[[], Awaitable[T]]) -> T:
        backoff = Backoff(_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await ask()
            except tuple(_FINAL) as error:
                _log.warning("object not read", uri=uri, error=_said(error))
                raise ObjectError(_FINAL[type(error)]) from None
            except obstore.exceptions.BaseError as error:
                _log.warning("object store failed", uri=uri, attempt=attempt, error=_said(error))
            if attempt < _ATTEMPTS:
                await self._pause(backoff.next_seconds())
        raise Unreachable(
            f"its store did not answer properly, {_ATTEMPTS} times; try again later, or have the "
            "trainer's log looked at"
        )


def _said(error: Exception) -> str:
    """Returns what the library said in its first line, which has the request and the answer."""
    return _QUERY.sub("?…", str(error).partition("\n")[0])[:500]


def _open(uri: str) -> tuple[obstore.store.ObjectStore, str]:
    """Returns the bucket of an object, and its key there."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    try:
        store = obstore.store.from_url(
            f"{scheme}://{bucket}",
            # Attempts are counted here, where a body that broke off is one too.
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
        )
    except (obstore.exceptions.BaseError, ValueError) as error:
        _log.warning("object store cannot be used", uri=uri, error=_said(error))
        raise ObjectError(
            "the trainer is not set up for its store; have its log looked at"
        ) from None
    return store, key
