"""Every wrong field of a request at once, and how what was got is shown."""

from __future__ import annotations

from collections.abc import Sequence

from modelrail_server.errors import FieldViolation, InvalidArgument

SHOWN = 60
"""Most characters of a caller's text that an error repeats."""


class Violations:
    """Collects every wrong field, so that a caller mends all of them at once."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Notes one wrong field."""
        self.found.append(FieldViolation(field, description))

    def check(self) -> None:
        """Raises what was noted, if anything was.

        Raises:
            InvalidArgument: At least one field is wrong.
        """
        if self.found:
            message = "; ".join(v.description for v in self.found[:3])
            if len(self.found) > 3:
                message += f"; and {len(self.found) - 3} more"
            raise InvalidArgument(message, violations=self.found)


def sizes(shape: Sequence[int]) -> str:
    """Writes a shape as Triton does: `[-1,16]`."""
    return "[" + ",".join(map(str, shape[:32])) + (",…]" if len(shape) > 32 else "]")


def shown(text: str) -> str:
    """Returns the beginning of a caller's text."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def listed(names: Sequence[str]) -> list[str]:
    """Returns the first of a caller's names, each no longer than is shown."""
    return [shown(name) for name in names[:20]]
