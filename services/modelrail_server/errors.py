"""The errors that a modelrail server answers with. No gRPC here: `status.py` has the codes.

    ServiceError
     ├── InvalidArgument       the request is wrong whatever the state of the server
     ├── OutOfRange            a position lies outside what exists
     ├── Unauthenticated       no credentials, or wrong ones
     ├── PermissionDenied      good credentials that do not allow this
     ├── NotFound              the named resource does not exist
     ├── AlreadyExists         the name is taken
     ├── FailedPrecondition    the state of the server does not allow this
     ├── Aborted               another caller was faster: read again, then retry
     ├── ResourceExhausted     a limit that waiting does not cure
     ├── DeadlineExceeded      the caller's time ran out before the work was done
     ├── Unavailable           not now: retry, here or at another replica
     ├── DataLoss              stored bytes are not what they were
     └── Unimplemented         the method exists, but this server does not do it

Anything else that leaves a servicer is a defect: it is logged with its trace and answered with the
fixed text "internal error".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request (`spec.model.channels`) and what is wrong."""

    field: str
    description: str


class ServiceError(Exception):
    """An error that the caller is told about.

    Args:
        message: A sentence for the caller: what was expected and what was got. Never paths of this
            machine, SQL, stack traces or names that the caller did not send.
        reason: Constant in UPPER_SNAKE_CASE that programs can test; the class has a default.
        violations: Wrong fields, for errors about the request.
        resource: Name of the resource that the error is about.
        retry_after_seconds: When to try again, where waiting helps.
        metadata: The dynamic values of the message, for programs.
    """

    default_reason: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        violations: Sequence[FieldViolation] = (),
        resource: str | None = None,
        retry_after_seconds: float | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = tuple(violations)
        self.resource = resource
        self.retry_after_seconds = retry_after_seconds
        self.metadata = metadata


class InvalidArgument(ServiceError):
    """The request is wrong whatever the state of the server."""

    default_reason = "INVALID_ARGUMENT"

    @classmethod
    def field(cls, field: str, description: str, **metadata: str) -> Self:
        """Returns the error for one wrong field; `description`: what was expected, what was got."""
        error = cls(f"{field}: {description}", violations=[FieldViolation(field, description)])
        error.metadata.update(metadata)
        return error


class OutOfRange(ServiceError):
    """A position lies outside what exists."""

    default_reason = "OUT_OF_RANGE"


class Unauthenticated(ServiceError):
    """No credentials were sent, or wrong ones."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    """The credentials are good and do not allow this."""

    default_reason = "PERMISSION_DENIED"


class NotFound(ServiceError):
    """The named resource does not exist."""

    default_reason = "NOT_FOUND"


class AlreadyExists(ServiceError):
    """The name is taken."""

    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(ServiceError):
    """The state of the server does not allow this."""

    default_reason = "FAILED_PRECONDITION"


class Aborted(ServiceError):
    """Another caller was faster; the caller reads again and retries."""

    default_reason = "ABORTED"


class ResourceExhausted(ServiceError):
    """A limit was reached that waiting does not cure."""

    default_reason = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(ServiceError):
    """The caller's time ran out before the work was done."""

    default_reason = "DEADLINE_EXCEEDED"


class Unavailable(ServiceError):
    """The server cannot answer now; a retry, here or at another replica, can succeed."""

    default_reason = "UNAVAILABLE"


class DataLoss(ServiceError):
    """Stored bytes are not what they were."""

    default_reason = "DATA_LOSS"


class Unimplemented(ServiceError):
    """The method exists in the protocol, and this server does not do it."""

    default_reason = "UNIMPLEMENTED"
