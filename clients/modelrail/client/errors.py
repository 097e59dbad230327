"""What a call can raise.

    ModelrailError
     ├── InvalidArgument       the request is wrong whatever the state of the server
     ├── OutOfRange            a position lies outside what exists
     ├── Unauthenticated       no credentials, or wrong ones
     ├── PermissionDenied      good credentials that do not allow this
     ├── NotFound              the named resource does not exist
     ├── AlreadyExists         the name is taken
     ├── FailedPrecondition    the state of the server does not allow this
     ├── Aborted               another caller was faster: read again, then retry
     ├── ResourceExhausted     a limit that waiting does not cure
     ├── Unavailable           not now: the server is down, starting or busy
     ├── DataLoss              bytes are not what they should be, stored or received
     ├── Unimplemented         the method exists, but this server does not do it
     ├── DeadlineExceeded      the answer took longer than the call's deadline
     ├── CallCancelled         the other side broke the call off
     └── InternalError         a defect of the server; its log has the trace under `request_id`

The first twelve mirror the server's tree, class by class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, cast

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

__all__ = [
    "Aborted",
    "AlreadyExists",
    "CallCancelled",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "InternalError",
    "InvalidArgument",
    "ModelrailError",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request (`spec.model.cnn.channels`) and what is wrong."""

    field: str
    description: str


class ModelrailError(Exception):
    """An RPC that did not end well.

    Args:
        message: What the server said: what was expected and what was got.
        reason: Constant in UPPER_SNAKE_CASE that programs can test; empty from servers that send
            none.
        metadata: The dynamic values of the message, for programs.
        violations: Wrong fields, for errors about the request.
        resource: Name of the resource that the error is about; empty when it is about none.
        retry_after_seconds: When to try again, where the server said so.
        request_id: The id under which the server logged the call; empty when it did not get that
            far.
    """

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        resource: str = "",
        retry_after_seconds: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.resource = resource
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r})"


class InvalidArgument(ModelrailError):
    """The request is wrong whatever the state of the server; `violations` name the fields."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class OutOfRange(ModelrailError):
    """A position lies outside what exists."""

    status = grpc.StatusCode.OUT_OF_RANGE


class Unauthenticated(ModelrailError):
    """No credentials were sent, or wrong ones."""

    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ModelrailError):
    """The credentials are good and do not allow this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class NotFound(ModelrailError):
    """The named resource does not exist."""

    status = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ModelrailError):
    """The name is taken."""

    status = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ModelrailError):
    """The state of the server does not allow this."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(ModelrailError):
    """Another caller was faster; read again and retry."""

    status = grpc.StatusCode.ABORTED


class ResourceExhausted(ModelrailError):
    """A limit was reached that waiting does not cure."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ModelrailError):
    """The server cannot be reached or cannot answer now; a retry can succeed."""

    status = grpc.StatusCode.UNAVAILABLE


class DataLoss(ModelrailError):
    """Bytes are not what they should be: stored ones, or ones received in a download."""

    status = grpc.StatusCode.DATA_LOSS


class Unimplemented(ModelrailError):
    """The method exists in the protocol, and this server does not do it."""

    status = grpc.StatusCode.UNIMPLEMENTED


class DeadlineExceeded(ModelrailError):
    """The answer took longer than the call's deadline. A change may have happened all the same."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class CallCancelled(ModelrailError):
    """The other side broke the call off."""

    status = grpc.StatusCode.CANCELLED


class InternalError(ModelrailError):
    """A defect of the server; its log has the trace under `request_id`."""

    status = grpc.StatusCode.INTERNAL


_BY_STATUS: Mapping[grpc.StatusCode, type[ModelrailError]] = {
    **{error.status: error for error in ModelrailError.__subclasses__()},
    grpc.StatusCode.UNKNOWN: InternalError,
}


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turns every gRPC error that leaves the block into the most specific `ModelrailError`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def from_rpc_error(error: grpc.aio.AioRpcError) -> ModelrailError:
    """Reads the status and the google.rpc details of a failed call."""
    kind = _BY_STATUS.get(error.code(), ModelrailError)
    metadata = dict(error.trailing_metadata() or ())
    request_id = metadata.get("x-request-id", "")
    failure = kind(
        error.details() or error.code().name,
        request_id=request_id if isinstance(request_id, str) else "",
    )
    _add_details(failure, error)
    return failure


def _add_details(failure: ModelrailError, error: grpc.aio.AioRpcError) -> None:
    status = _rich_status(error)
    if status is None:
        return
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        resource = error_details_pb2.ResourceInfo()
        retry = error_details_pb2.RetryInfo()
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(info):
            failure.reason = info.reason
            failure.metadata = dict(info.metadata)
        elif detail.Unpack(bad_request):
            failure.violations = tuple(
                FieldViolation(violation.field, violation.description)
                for violation in bad_request.field_violations
            )
        elif detail.Unpack(resource):
            failure.resource = resource.resource_name
        elif detail.Unpack(retry):
            failure.retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(request):
            failure.request_id = request.request_id or failure.request_id


def _rich_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    # from_call() raises ValueError when a proxy changed the code or text beside the details: the
    # plain status is then all that can be trusted.
    try:
        # from_call() asks for trailing_metadata(), code() and details(), which this error has too.
        status: status_pb2.Status | None = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:
        return None
    return status
