"""Why a request does not run: its time is over, or would be, or the server ends."""

from __future__ import annotations

from modelrail_inference.model.batching import TimeoutAction
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.queue.request_queue import is_late
from modelrail_server.errors import ResourceExhausted, ServiceError, Unavailable

LEAST_RETRY_SECONDS = 0.01
"""A caller that is told to come again comes no sooner."""
_ELSEWHERE_SECONDS = 0.1
"""For a caller of a server that ends to find another one."""


def expired() -> Unavailable:
    """Returns the error for a request whose time has run out, in Triton's words."""
    return Unavailable("Request timeout expired", reason="REQUEST_TIMEOUT")


def unreachable(predicted_seconds: float, remaining_seconds: float) -> ResourceExhausted:
    """Returns the error for a request that could not be answered before its deadline."""
    return ResourceExhausted(
        f"the answer is predicted to take {predicted_seconds * 1000:.0f} ms, but the deadline is "
        f"in {remaining_seconds * 1000:.0f} ms",
        reason="DEADLINE_UNREACHABLE",
        retry_after_seconds=max(LEAST_RETRY_SECONDS, predicted_seconds),
    )


def is_out(request: QueuedRequest, now: float) -> bool:
    """Whether a request that waits shall not run any more: its time, or its policy's, is over."""
    if request.deadline is not None and request.deadline <= now:
        return True
    policy = request.lane.queue.batching.policy_of(request.level)
    return policy.on_timeout is TimeoutAction.REJECT and is_late(request, now)


def too_late(request: QueuedRequest, now: float, predicted_seconds: float) -> ServiceError:
    """Returns the error for a request that was taken out of the queue and does not run.

    Args:
        request: The request.
        now: Moment of `time.monotonic()`.
        predicted_seconds: When its answer would have come, counted from now.
    """
    if request.deadline is None or is_late(request, now):
        return expired()
    return unreachable(predicted_seconds, request.deadline - now)


def exiting() -> Unavailable:
    """Returns the error for a request that comes to a server that ends, or waits there."""
    return Unavailable(
        "Server exiting", reason="SERVER_EXITING", retry_after_seconds=_ELSEWHERE_SECONDS
    )
