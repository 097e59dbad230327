"""What a caller is told of a request that failed, and how it is counted."""

from __future__ import annotations

import asyncio

from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.request.assembly import RowsError
from modelrail_inference.request.call import Call
from modelrail_inference.runtime.session import (
    DeviceError,
    OutOfMemory,
    RunError,
    RunTerminatedError,
)
from modelrail_inference.scheduling.queue.refusals import expired
from modelrail_inference.statistics import Failure, Refusal, Statistics
from modelrail_server.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)

_DEVICE_RETRY_SECONDS = 1.0
"""Other replicas can answer at once; this one when it was replaced."""
_REFUSALS = {
    "QUEUE_FULL": Refusal.QUEUE_FULL,
    "QUEUE_BYTES_FULL": Refusal.BYTES_FULL,
    "DEADLINE_UNREACHABLE": Refusal.DEADLINE_UNREACHABLE,
    "REQUEST_TOO_LARGE": Refusal.TOO_LARGE,
    "REPLY_TOO_LARGE": Refusal.REPLY_TOO_LARGE,
    "REPLIES_UNREAD": Refusal.REPLIES_UNREAD,
    "THREAD_LIMIT": Refusal.THREAD_LIMIT,
    "SERVER_EXITING": Refusal.SHUTTING_DOWN,
}
"""Reasons of errors, as they are counted."""


def to_service_error(error: BaseException, model: LoadedModel) -> BaseException:
    """Returns what the caller is told about a run that failed; other errors as they are."""
    told: ServiceError
    if isinstance(error, OutOfMemory):
        told = ResourceExhausted(f"model '{model.model}': {error}", reason="OUT_OF_MEMORY")
    elif isinstance(error, RunError):
        told = InvalidArgument(
            f"model '{model.model}' could not compute these inputs: {error}",
            reason="MODEL_RUN_FAILED",
        )
    elif isinstance(error, RowsError):
        told = FailedPrecondition(
            f"model '{model.model}' cannot be served as it is configured, with padding or "
            f"batch_buckets: {error}",
            reason="MODEL_OUTPUT_ROWS",
        )
    elif isinstance(error, DeviceError):
        told = Unavailable(
            f"model '{model.model}': {error}",
            reason="DEVICE_FAILED",
            retry_after_seconds=_DEVICE_RETRY_SECONDS,
        )
    elif isinstance(error, RunTerminatedError):
        told = expired()
    else:
        return error
    told.__cause__ = error
    return told


def with_request_id(error: ServiceError, request_id: str) -> ServiceError:
    """Puts the caller's request id in front of an error's message, as Triton does."""
    if request_id:
        error.message = f"[request id: {request_id[:200]}] {error.message}"
        error.args = (error.message,)
    return error


def count_failure(
    statistics: Statistics, error: BaseException, elapsed_ns: int, *, call: Call, ran: bool
) -> None:
    """Counts a request that got an error, or whose caller went away, after `elapsed_ns`.

    A transport that knows the deadline cancels the call when it passes: that is no caller's wish,
    and counts like a deadline that was noticed here.
    """
    cancelled = isinstance(error, asyncio.CancelledError)
    reason = error.reason if isinstance(error, ServiceError) else ""
    if reason == "REQUEST_TIMEOUT" or (cancelled and call.expired()):
        statistics.expired(elapsed_ns, ran=ran)
    elif cancelled:
        statistics.cancelled(elapsed_ns)
    elif reason in _REFUSALS:
        statistics.refused(_REFUSALS[reason], elapsed_ns)
    elif reason in ("MODEL_RUN_FAILED", "MODEL_OUTPUT_ROWS", "OUT_OF_MEMORY", "DEVICE_FAILED"):
        statistics.failed(Failure.BACKEND, elapsed_ns)
    else:
        statistics.failed(Failure.OTHER, elapsed_ns)
