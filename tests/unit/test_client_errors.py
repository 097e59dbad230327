from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from modelrail.client import errors
from modelrail.client.backoff import Backoff, is_transient
from modelrail_server import errors as server_errors


def rpc_error(code: grpc.StatusCode, *details: AnyMessage) -> grpc.aio.AioRpcError:
    status = status_pb2.Status(code=code.value[0], message="what happened", details=details)
    return grpc.aio.AioRpcError(
        code,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(
            ("grpc-status-details-bin", status.SerializeToString()), ("x-request-id", "abc")
        ),
        details="what happened",
    )


def packed(message: object) -> AnyMessage:
    box = AnyMessage()
    box.Pack(message)  # type: ignore[arg-type]
    return box


@pytest.mark.parametrize("server_error", server_errors.ServiceError.__subclasses__())
def test_every_error_of_the_server_has_a_counterpart(
    server_error: type[server_errors.ServiceError],
) -> None:
    client_error = getattr(errors, server_error.__name__)
    assert issubclass(client_error, errors.ModelrailError)
    assert client_error.status.name == server_error.default_reason
    assert server_error.__name__ in errors.__all__


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
def test_every_status_becomes_an_error_of_its_own(code: grpc.StatusCode) -> None:
    with pytest.raises(errors.ModelrailError) as caught, errors.mapped_errors():
        raise rpc_error(code)
    expected = grpc.StatusCode.INTERNAL if code is grpc.StatusCode.UNKNOWN else code
    assert caught.value.status is expected
    assert type(caught.value) is not errors.ModelrailError


def test_an_error_carries_the_details_of_the_server() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    failure = errors.from_rpc_error(
        rpc_error(
            grpc.StatusCode.INVALID_ARGUMENT,
            packed(error_details_pb2.ErrorInfo(reason="WRONG", metadata={"expected": "FP32"})),
            packed(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field="spec.epochs", description="expected 1, got 0"
                        )
                    ]
                )
            ),
            packed(error_details_pb2.ResourceInfo(resource_name="models/digits")),
            packed(retry),
        )
    )
    assert isinstance(failure, errors.InvalidArgument)
    assert failure.message == str(failure) == "what happened"
    assert failure.reason == "WRONG"
    assert failure.metadata == {"expected": "FP32"}
    assert failure.violations == (errors.FieldViolation("spec.epochs", "expected 1, got 0"),)
    assert failure.resource == "models/digits"
    assert failure.retry_after_seconds == 1.5
    assert failure.request_id == "abc"


def test_an_error_whose_details_do_not_match_its_status_still_maps() -> None:
    status = status_pb2.Status(code=5, message="another text")
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString())),
        details="the proxy is tired",
    )
    assert isinstance(errors.from_rpc_error(error), errors.Unavailable)


def test_only_a_server_that_is_away_is_worth_another_stream() -> None:
    assert is_transient(errors.Unavailable(""))
    assert is_transient(errors.CallCancelled(""))
    assert not is_transient(errors.NotFound(""))
    assert not is_transient(errors.InternalError(""))


def test_waits_grow_up_to_the_cap_and_start_again_after_a_success() -> None:
    backoff = Backoff(initial_seconds=0.1, maximum_seconds=2.0)
    delays = [backoff.next_delay() for _ in range(50)]
    assert all(
        0.2 * min(2.0, 0.1 * 2.0**index) <= delay <= min(2.0, 0.1 * 2.0**index)
        for index, delay in enumerate(delays)
    )
    assert backoff.next_delay(retry_after_seconds=9.0) == 9.0
    backoff.reset()
    assert backoff.next_delay() <= 0.1
