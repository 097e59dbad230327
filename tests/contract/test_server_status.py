"""The error table: complete, told in full, and never too large for a client."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    RequestInfo,
    ResourceInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status

from modelrail_server import errors
from modelrail_server.rpc.status import STATUS_CODES, code_of, internal_reply, reply_to

DETAILS: dict[str, Any] = {
    kind.DESCRIPTOR.full_name: kind for kind in (BadRequest, ErrorInfo, RequestInfo)
}
DETAILS |= {kind.DESCRIPTOR.full_name: kind for kind in (ResourceInfo, RetryInfo)}


def subclasses(error_type: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
    found = set(error_type.__subclasses__())
    return found.union(*(subclasses(child) for child in found))


def details_of(trailers: tuple[tuple[str, str | bytes], ...]) -> dict[str, object]:
    status = Status()
    raw = dict(trailers)["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    status.ParseFromString(raw)
    found: dict[str, object] = {}
    for packed in status.details:
        message = DETAILS[packed.type_url.rpartition("/")[2]]()
        assert packed.Unpack(message)
        found[type(message).__name__] = message
    return found


def test_every_error_class_is_in_the_table() -> None:
    own = {kind for kind in subclasses(errors.ServiceError) if kind.__module__ == errors.__name__}
    assert own == set(STATUS_CODES)


def test_every_error_class_has_a_code_of_its_own() -> None:
    assert len(set(STATUS_CODES.values())) == len(STATUS_CODES)


@pytest.mark.parametrize("error_type", list(STATUS_CODES))
def test_codes_and_default_reasons_are_named_alike(error_type: type[errors.ServiceError]) -> None:
    assert STATUS_CODES[error_type].name == error_type.default_reason


def test_a_class_that_a_service_derives_has_its_parents_code() -> None:
    class AliasMoved(errors.Aborted):
        default_reason = "ALIAS_MOVED"

    assert code_of(AliasMoved) is grpc.StatusCode.ABORTED


def test_a_class_outside_of_the_table_is_a_defect() -> None:
    with pytest.raises(LookupError):
        code_of(errors.ServiceError)


def test_everything_that_an_error_says_is_told() -> None:
    error = errors.Unavailable(
        "no room",
        reason="QUEUE_FULL",
        violations=[errors.FieldViolation("inputs[0].shape", "expected [8], got [9]")],
        resource="models/digits/versions/3",
        retry_after_seconds=0.25,
        queue="digits",
    )
    reply = reply_to(error, domain="modelrail.inference", request_id="r-1")
    assert reply.code is grpc.StatusCode.UNAVAILABLE
    assert reply.message == "no room"
    assert dict(reply.trailers)["grpc-retry-pushback-ms"] == "250"
    assert dict(reply.trailers)["x-request-id"] == "r-1"
    details = details_of(reply.trailers)
    assert details["ErrorInfo"] == ErrorInfo(
        reason="QUEUE_FULL", domain="modelrail.inference", metadata={"queue": "digits"}
    )
    assert details["RequestInfo"] == RequestInfo(request_id="r-1")
    retry, resource, bad = details["RetryInfo"], details["ResourceInfo"], details["BadRequest"]
    assert isinstance(retry, RetryInfo)
    assert isinstance(resource, ResourceInfo)
    assert isinstance(bad, BadRequest)
    assert retry.retry_delay.ToMilliseconds() == 250
    assert resource == ResourceInfo(
        resource_type="versions", resource_name="models/digits/versions/3"
    )
    assert bad.field_violations[0].field == "inputs[0].shape"
    assert bad.field_violations[0].description == "expected [8], got [9]"


def test_an_error_fits_into_the_metadata_that_clients_accept() -> None:
    error = errors.InvalidArgument(
        "ü" * 100_000,
        violations=[errors.FieldViolation("ß" * 1000, "ä" * 10_000) for _ in range(1000)],
        resource="models/" + "x" * 100_000,
    )
    error.metadata.update({f"key{number}": "y" * 1000 for number in range(100)})
    reply = reply_to(error, domain="modelrail.registry", request_id="r")
    raw = dict(reply.trailers)["grpc-status-details-bin"]
    # Percent-encoding triples the message, base64 makes 4 of 3 bytes; 8192 is gRPC's default limit.
    assert len(reply.message.encode()) * 3 + len(raw) * 4 // 3 + 300 < 8192
    details = details_of(reply.trailers)
    assert isinstance(details["BadRequest"], BadRequest)
    assert details["BadRequest"].field_violations
    assert isinstance(details["ErrorInfo"], ErrorInfo)
    assert details["ErrorInfo"].reason == "INVALID_ARGUMENT"


def test_text_that_is_no_unicode_can_be_told() -> None:
    error = errors.InvalidArgument.field("name", "got '\ud800'")
    assert "?" in reply_to(error, domain="d", request_id="r").message


def test_a_defect_is_told_nothing_but_the_request_id() -> None:
    reply = internal_reply(domain="modelrail.registry", request_id="r-2")
    assert (reply.code, reply.message) == (grpc.StatusCode.INTERNAL, "internal error")
    assert details_of(reply.trailers).keys() == {"ErrorInfo", "RequestInfo"}
