"""How errors travel: the one table from error class to gRPC status code, and the details."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    RequestInfo,
    ResourceInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status

from modelrail_server import errors

__all__ = ["INTERNAL_MESSAGE", "STATUS_CODES", "Reply", "code_of", "internal_reply", "reply_to"]

STATUS_CODES: dict[type[errors.ServiceError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
}

INTERNAL_MESSAGE = "internal error"

# Clients accept 8 KiB of metadata by default and turn more into a RESOURCE_EXHAUSTED that says
# nothing. On the wire the message is percent-encoded (three bytes for one), the details are base64.
_MESSAGE_BYTES = 800
_DETAILS_BYTES = 3600
_ERROR_INFO_BYTES = 1000


class Reply(NamedTuple):
    """What `context.abort` needs."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def code_of(error_type: type[errors.ServiceError]) -> grpc.StatusCode:
    """Returns the status of an error class; a subclass made by a service has its parent's.

    Raises:
        LookupError: Neither the class nor a parent is in the table.
    """
    for parent in error_type.__mro__:
        if (code := STATUS_CODES.get(parent)) is not None:
            return code
    raise LookupError(f"{error_type.__name__} has no status code")


def reply_to(error: errors.ServiceError, *, domain: str, request_id: str) -> Reply:
    """Returns the answer to a call that failed with `error`.

    Args:
        error: What went wrong.
        domain: Domain of `ErrorInfo`, like `modelrail.registry`.
        request_id: Id of the call, which support and log readers ask for.
    """
    code = code_of(type(error))
    details: list[Message] = [
        _error_info(error, domain),
        RequestInfo(request_id=request_id),
    ]
    trailers: list[tuple[str, str | bytes]] = [("x-request-id", request_id)]
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(milliseconds := max(0, round(error.retry_after_seconds * 1000)))
        details.append(RetryInfo(retry_delay=delay))
        trailers.append(("grpc-retry-pushback-ms", str(milliseconds)))
    if error.resource is not None:
        kind = error.resource.rsplit("/", 2)[-2] if "/" in error.resource else ""
        details.append(ResourceInfo(resource_type=kind, resource_name=error.resource))
    message = _clipped(error.message, _MESSAGE_BYTES)
    status = Status(code=code.value[0], message=message)
    status.details.extend(_fitting(status, details, error.violations))
    trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    return Reply(code, message, tuple(trailers))


def internal_reply(*, domain: str, request_id: str) -> Reply:
    """Returns the answer to a call that met a defect of this server: nothing but the request id."""
    status = Status(code=grpc.StatusCode.INTERNAL.value[0], message=INTERNAL_MESSAGE)
    status.details.extend(
        _packed([ErrorInfo(reason="INTERNAL", domain=domain), RequestInfo(request_id=request_id)])
    )
    return Reply(
        grpc.StatusCode.INTERNAL,
        INTERNAL_MESSAGE,
        (("x-request-id", request_id), ("grpc-status-details-bin", status.SerializeToString())),
    )


def _error_info(error: errors.ServiceError, domain: str) -> ErrorInfo:
    info = ErrorInfo(reason=error.reason, domain=domain)
    for key, value in error.metadata.items():
        if info.ByteSize() + len(key) > _ERROR_INFO_BYTES:
            break
        info.metadata[key] = _clipped(value, 200)
    return info


def _fitting(
    status: Status, details: Sequence[Message], violations: Sequence[errors.FieldViolation]
) -> list[AnyMessage]:
    """Packs the details that fit, in the order of their use; violations are cut, not dropped."""
    budget = _DETAILS_BYTES - status.ByteSize()
    packed: list[AnyMessage] = []
    for message in _packed(details):
        if (size := message.ByteSize() + 4) <= budget:
            packed.append(message)
            budget -= size
    bad_request = BadRequest()
    for violation in violations:
        candidate = BadRequest.FieldViolation(
            field=_clipped(violation.field, 200), description=_clipped(violation.description, 400)
        )
        # 80 bytes are what the type's URL and the framing take.
        if bad_request.ByteSize() + candidate.ByteSize() + 80 > budget:
            break
        bad_request.field_violations.append(candidate)
    if bad_request.field_violations:
        packed.extend(_packed([bad_request]))
    return packed


def _packed(messages: Iterable[Message]) -> list[AnyMessage]:
    packed = []
    for message in messages:
        packed.append(AnyMessage())
        packed[-1].Pack(message)
    return packed


def _clipped(text: str, limit: int) -> str:
    """Returns `text` with at most about `limit` bytes of UTF-8; lone surrogates are replaced."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 3].decode("utf-8", "ignore") + "…"
