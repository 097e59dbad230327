"""A request that failed, which is a figure of a load test and never its end."""

from __future__ import annotations

__all__ = ["RequestFailed"]


class RequestFailed(Exception):
    """A request that was not answered well.

    Args:
        code: Name of the gRPC status, or STREAM_ERROR.
        message: What the server said, or gRPC.
        reason: The reason in the google.rpc ErrorInfo of the answer; empty where there is none.
    """

    def __init__(self, code: str, message: str, reason: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason

    @property
    def kind(self) -> str:
        """Code and reason: `UNAVAILABLE QUEUE_FULL`, or the code alone."""
        return f"{self.code} {self.reason}".rstrip()
