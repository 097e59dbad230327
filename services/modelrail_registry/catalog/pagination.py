"""Pages of lists (https://google.aip.dev/158)."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelrail_server.errors import InvalidArgument

_DEFAULT_SIZE = 50
_LARGEST_SIZE = 1000
_LONGEST_TOKEN = 1024

Item = TypeVar("Item")


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
        case [str(bound), str(after)] if bound == collection:
            return after
    raise wrong
