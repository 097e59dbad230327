"""A request that failed, which is a figure of a load test and never its end."""

from __future__ import annotations

import re

__all__ = ["STREAM_ERROR", "RequestFailed"]

STREAM_ERROR = "STREAM_ERROR"
"""In place of a status: the protocol has nothing but a text for an error that leaves its stream
open. (Triton's header `triton_grpc_error` would give the status, and end the stream with it, and
with that every other request on it.)"""
_NUMBER = re.compile(r"\d+(\.\d+)?")
_MOST_CHARACTERS = 200


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
        """What counts together: a code and a reason, or the errors of streams with one text.

        `UNAVAILABLE QUEUE_FULL`, the code alone, or the code and the text but for its numbers.
        """
        why = self.reason
        if self.code == STREAM_ERROR:
            why = _NUMBER.sub("N", self.message[:_MOST_CHARACTERS])
        return f"{self.code} {why}".rstrip()
