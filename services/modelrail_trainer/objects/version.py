"""What a store says of an object, and what can be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from modelrail_trainer.rules.violation import shown


class ObjectError(Exception):
    """An object cannot be had; the message is for the owner of the job."""


class Unreachable(ObjectError):
    """The store did not answer, or only with errors of its own; later it may."""


class BadName(ObjectError):
    """An object below a folder has a name that no file there can have.

    Args:
        path: Its name, below the folder or from the bucket on.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            f"an object below it is named {shown(path, 200)}, which leads elsewhere or can be no "
            "file; rename or remove that object"
        )


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
