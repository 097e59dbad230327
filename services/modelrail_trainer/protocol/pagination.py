"""Opaque page tokens."""

from __future__ import annotations

import base64
import binascii

from modelrail_server.errors import InvalidArgument

_PREFIX = "trainingJobs<"


def token_from_number(number: int) -> str:
    """Returns the token of the page whose jobs lie below `number`."""
    return base64.urlsafe_b64encode(f"{_PREFIX}{number}".encode()).decode()


def number_from_token(token: str) -> int | None:
    """Returns the number in a token; None for an empty one.

    Raises:
        InvalidArgument: The token is none of ours.
    """
    if not token:
        return None
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        if not text.startswith(_PREFIX):
            raise ValueError(text)
        number = int(text.removeprefix(_PREFIX))
        if not 0 < number < 1 << 63:
            raise ValueError(text)
    except (ValueError, binascii.Error):
        raise InvalidArgument.field(
            "page_token", "expected the next_page_token of another page, got something else"
        ) from None
    return number
