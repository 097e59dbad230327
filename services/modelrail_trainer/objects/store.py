"""The one place that speaks with object stores, through obstore.

Credentials and endpoints come from the environment of the service, as its library reads them
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_KEY` and
so on). Messages of the library name hosts, and may hold signatures and credentials that it could
not read, so none of them goes further than the log, and not even there what follows a question
mark or what it quotes as a string.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import obstore
import obstore.exceptions
import obstore.store
import structlog

from modelrail_trainer.execution.patience import Backoff
from modelrail_trainer.objects.version import BadName, ObjectError, ObjectVersion, Unreachable

if TYPE_CHECKING:
    from obstore import ObjectMeta

T = TypeVar("T")
PART_BYTES = 8 << 20
"""Bytes that are asked for at a time, and are in memory."""
_LISTED_AT_ONCE = 1000
_ATTEMPTS = 6
_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.2, 10.0
_QUERY = re.compile(r"\?[^\s\"')]+")
_STRING = re.compile(r'\bstring ".*"')
_NOT_SET_UP = "the trainer is not set up for its store; have its log looked at"
_UNKNOWN = "the store does not know the trainer; have its credentials looked at"
_CHANGED = "it was replaced while it was read; clone the job when nobody writes it any more"
# What asking again does not change, and what the owner of the job is told of it.
_FINAL: dict[type[Exception], str] = {
    FileNotFoundError: "there is no such object",
    obstore.exceptions.PermissionDeniedError: "the trainer may not read it; have its credentials "
    "looked at",
    obstore.exceptions.UnauthenticatedError: _UNKNOWN,
    obstore.exceptions.PreconditionError: _CHANGED,
    obstore.exceptions.InvalidPathError: "the store knows no such name",
}
# Of lists the library tells such an answer from a bad moment only in its message.
_STATUS = re.compile(r"\bstatus code: (\d{3})\b")
_NOT_LISTED = {
    "401": _UNKNOWN,
    "403": "the trainer may not list what is below it; have its credentials looked at",
    "404": "there is no such bucket",
}
# So it does when whoever gives out tokens, for Azure and Google, refuses the credentials.
_NO_TOKEN = re.compile(r"\btoken request: .*\bstatus code: 40[013]\b")
_PATH = re.compile(r'\bPath "(.*?)"(?: contained|: )')
# What the library raises, from nowhere to import, where a credential can be no header.
_PANIC = "RustPanic"
_WHY_PANIC = "its library panicked; has a credential a line break, such as one at its end?"
_log = structlog.get_logger(__name__)


class ObjectReader:
    """Reads objects in parts, each as often as it takes.

    Args:
        pause: Waits so many seconds, between two attempts.
    """

    def __init__(self, pause: Callable[[float], Awaitable[None]]) -> None:
        self._pause = pause
        self._buckets: dict[str, obstore.store.ObjectStore] = {}

    async def look(self, uri: str) -> ObjectVersion:
        """Returns what there is.

        Raises:
            ObjectError: There is no such object, or it may not be read.
        """
        store, key = self._open(uri)
        found = await self._persist(uri, lambda: obstore.head_async(store, key))
        return ObjectVersion(uri, found["size"], found["e_tag"])

    async def look_below(self, folder: str, *, most: int) -> dict[str, ObjectVersion]:
        """Returns the objects below a folder of keys, by their paths there.

        Args:
            folder: URI of a bucket, or of a folder of keys in one.
            most: Once there are more than so many, no more are asked for.

        Raises:
            ObjectError: They may not be listed, or one has a name that is no path.
        """
        folder = folder.rstrip("/") + "/"
        store, prefix = self._open(folder)
        found: dict[str, ObjectVersion] = {}
        last: str | None = None
        pages: AsyncIterator[Sequence[ObjectMeta]] | None = None

        def is_new(one: ObjectMeta) -> bool:
            # What marks a folder is listed without the slash at its end.
            return one["path"].startswith(prefix) and one["path"].removeprefix(prefix) not in found

        async def next_page() -> Sequence[ObjectMeta]:
            nonlocal pages
            if pages is None:
                pages = aiter(
                    obstore.list(store, prefix.rstrip("/"), offset=last, chunk_size=_LISTED_AT_ONCE)
                )
            try:
                # Some stores begin a list anew where it was to go on in its middle. What is known
                # is then no progress, or a page that always fails would be tried for ever.
                while not (page := [one for one in await anext(pages) if is_new(one)]):
                    pass
                return page
            except StopAsyncIteration:
                return ()
            except obstore.exceptions.BaseError as error:
                pages = None  # what was listed so far stays; the next begins behind it
                self._check_listed(folder, error)
                raise

        while len(found) <= most and (page := await self._persist(folder, next_page)):
            for one in page:
                last = one["path"]
                path = last.removeprefix(prefix)
                found.setdefault(
                    path, ObjectVersion(folder + path, one["size"], _quoted(one["e_tag"]))
                )
        return found

    @staticmethod
    def _check_listed(folder: str, error: obstore.exceptions.BaseError) -> None:
        """Raises what a list itself failed of, where asking again does not change it."""
        if isinstance(error, obstore.exceptions.InvalidPathError):
            _log.warning("folder not listed", uri=folder, error=_said(error))
            name = _PATH.search(str(error))
            raise BadName(name[1] if name else "…") from None
        status = _STATUS.search(str(error))
        if status is not None and status[1] in _NOT_LISTED and not _NO_TOKEN.search(str(error)):
            _log.warning("folder not listed", uri=folder, error=_said(error))
            raise ObjectError(_NOT_LISTED[status[1]]) from None

    async def parts(self, version: ObjectVersion) -> AsyncIterator[bytes]:
        """Yields the content from beginning to end.

        Raises:
            ObjectError: It changed since it was looked at, is gone, or may not be read.
        """
        store, key = self._open(version.uri)

        async def part(start: int, end: int) -> bytes:
            options: obstore.GetOptions = {"range": (start, end)}
            if version.tag is not None:
                options["if_match"] = version.tag
            try:
                response = await obstore.get_async(store, key, options=options)
            except obstore.exceptions.PreconditionError:
                # Azure says so of an object that is gone, too; for such a one this fails.
                await obstore.head_async(store, key)
                raise
            return bytes(await response.bytes_async())

        for start in range(0, version.size_bytes, PART_BYTES):
            end = min(start + PART_BYTES, version.size_bytes)
            content = await self._persist(version.uri, partial(part, start, end))
            if len(content) != end - start:
                raise ObjectError(_CHANGED)
            yield content

    def _open(self, uri: str) -> tuple[obstore.store.ObjectStore, str]:
        """Returns the bucket of an object, whose connections are used again, and its key there."""
        scheme, _, rest = uri.partition("://")
        name, _, key = rest.partition("/")
        address = f"{scheme}://{name}"
        if (bucket := self._buckets.get(address)) is not None:
            return bucket, key
        try:
            bucket = obstore.store.from_url(
                address,
                # Attempts are counted here, where a body that broke off is one too.
                retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
            )
        except (obstore.exceptions.BaseError, ValueError) as error:
            _log.warning("object store cannot be used", uri=uri, error=_said(error))
            raise ObjectError(_NOT_SET_UP) from None
        self._buckets[address] = bucket
        return bucket, key

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
                if _NO_TOKEN.search(str(error)):
                    raise ObjectError(_UNKNOWN) from None
            except Exception as error:
                if type(error).__name__ != _PANIC:
                    raise
                _log.warning("object store cannot be used", uri=uri, error=_WHY_PANIC)
                raise ObjectError(_NOT_SET_UP) from None
            if attempt < _ATTEMPTS:
                await self._pause(backoff.next_seconds())
        raise Unreachable(
            f"its store did not answer properly, {_ATTEMPTS} times; try again later, or have the "
            "trainer's log looked at"
        )


def _quoted(tag: str | None) -> str | None:
    """Returns a tag as a request has to have it; the lists of Azure leave its quotes out."""
    return tag if tag is None or tag.endswith('"') else f'"{tag}"'


def _said(error: Exception) -> str:
    """Returns what the library said in its first line, which has the request and the answer."""
    line = _QUERY.sub("?…", str(error).partition("\n")[0])
    return _STRING.sub('string "…"', line)[:500]
