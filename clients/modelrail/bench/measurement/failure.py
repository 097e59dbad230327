"""A request that failed, which is a figure of a load test and never its end."""

from __future__ import annotations

__all__ = ["RequestFailed"]


class RequestFailed(Exception):
    """A request that was not answered well.

    Args:
        code: Name of the gRPC status, or STREAM_ERROR.
        message: What the server said, or gRPC.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
