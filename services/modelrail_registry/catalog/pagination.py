"""Pages of lists (https://google.aip.dev/158)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelrail_server.errors import InvalidArgument

_DEFAULT_SIZE = 50
_LARGEST_SIZE = 1000
_LONGEST_TOKEN = 1024
# As the rows estimate them. Clients of gRPC take replies of 4 MiB unless they are told otherwise,
# and a reply can need up to twice what its JSON does: a dimension is two bytes there, four here.
_LARGEST_BYTES = 2 << 20

Item = TypeVar("Item")
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A piece of a list; the token asks for the next piece and is empty on the last."""

    items: tuple[Item, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a caller asks for.

    Args:
        size: Items wanted, from 1.
        after: Key of the last item of the page before; None for the first page.
        collection: What is listed, such as `models/digits/versions`. Tokens are bound to it.
    """

    size: int
    after: str | None
    collection: str

    @classmethod
    def parse(cls, *, page_size: int, page_token: str, collection: str) -> PageRequest:
        """Reads the two fields of a list request.

        Raises:
            InvalidArgument: The size is negative, or the token was not given out for this
                collection.
        """
        if page_size < 0:
            raise InvalidArgument.field(
                "page_size", f"expected 0 or more, got {page_size}", got=str(page_size)
            )
        size = min(page_size or _DEFAULT_SIZE, _LARGEST_SIZE)
        return cls(size, _after(page_token, collection) if page_token else None, collection)

    def take(
        self, rows: Iterable[Row], *, bytes_of: Callable[[Row], int]
    ) -> tuple[list[Row], bool]:
        """Returns the rows of the page, and whether others follow.

        A page ends at its count or when its bytes make a large reply, and has one row at least.

        Args:
            rows: What may be on the page, in order; no more of them are read than it takes.
            bytes_of: About how many bytes a row takes in a reply.
        """
        taken: list[Row] = []
        total = 0
        for row in rows:
            total += bytes_of(row)
            if len(taken) == self.size or (taken and total > _LARGEST_BYTES):
                return taken, True
            taken.append(row)
        return taken, False

    def token(self, after: str) -> str:
        """Returns the token of the page that begins behind the item with key `after`."""
        text = json.dumps([self.collection, after])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _after(token: str, collection: str) -> str:
    wrong = InvalidArgument.field(
        "page_token", f"expected a next_page_token of the list of {collection}, got another text"
    )
    if len(token) > _LONGEST_TOKEN:
        raise wrong
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        document = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise wrong from None
    match document:
        case [str(bound), str(after)] if bound == collection and _is_encodable(after):
            return after
    raise wrong


def _is_encodable(text: str) -> bool:
    """JSON can write half of a surrogate pair, which no database takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
