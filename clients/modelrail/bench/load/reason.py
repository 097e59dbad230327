"""Why a call failed, in the word that the server has for it.

One status code stands for several things: UNAVAILABLE for a full queue, which is told at once, and
for a request that waited there until its time was over.
Source: AIP-193 (google.rpc.ErrorInfo).
"""

from __future__ import annotations

import re

import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

__all__ = ["reason_of"]

_DETAILS = "grpc-status-details-bin"
_FORM = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


def reason_of(trailers: grpc.aio.Metadata | None) -> str:
    """Returns the reason, such as `QUEUE_FULL`; empty where the server states none in that form.

    Args:
        trailers: The trailing metadata of a call that failed.
    """
    try:
        for key, value in trailers or ():
            if key == _DETAILS and isinstance(value, bytes):
                return _reason(Status.FromString(value))
    except DecodeError:
        pass  # The plain status is then all that is said.
    return ""


def _reason(status: Status) -> str:
    info = ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info) and _FORM.fullmatch(info.reason):
            return info.reason
    return ""
