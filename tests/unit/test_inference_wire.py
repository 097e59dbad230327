"""Messages of the hot path, written and read by hand, against what protobuf writes and reads."""

from __future__ import annotations

import pytest
from google.protobuf.internal.wire_format import WIRETYPE_START_GROUP
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail_inference.protocol.convert import request_from_pb
from modelrail_inference.protocol.wire import (
    ReplyEncoder,
    RequestDecoder,
    encode_stream_error,
    varint,
)
from modelrail_inference.request.message import InferenceReply, InferenceRequest, OutputTensor
from modelrail_server.errors import InvalidArgument

names = st.text(max_size=12)
shapes = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(
        model_name=draw(names), model_version=draw(names), id=draw(names)
    )
    for _ in range(draw(st.integers(0, 3))):
        tensor = request.inputs.add(name=draw(names), datatype=draw(names), shape=draw(shapes))
        if draw(st.booleans()):
            tensor.parameters[draw(names)].int64_param = draw(st.integers(0, 9))
    for _ in range(draw(st.integers(0, 2))):
        request.outputs.add(name=draw(names))
    if draw(st.booleans()):
        request.parameters["priority"].uint64_param = draw(st.integers(0, 9))
    for size in draw(st.lists(st.sampled_from((0, 1, 127, 128, 300, 4095, 4096, 70_000)))):
        request.raw_input_contents.append(bytes([size % 251]) * size)
    return request


def read_by_protobuf(data: bytes) -> InferenceRequest:
    return request_from_pb(pb.ModelInferRequest.FromString(data), message_bytes=len(data))


def has_group(data: bytes) -> bool:
    """Whether there is a field of a kind that proto3 does not have, and protobuf passes over."""
    fields = UnknownFieldSet(pb.ModelInferRequest.FromString(data))
    return any(fields[n].wire_type == WIRETYPE_START_GROUP for n in range(len(fields)))


@given(requests())
def test_a_request_is_read_as_protobuf_reads_it(request: pb.ModelInferRequest) -> None:
    data = request.SerializeToString()
    decoder = RequestDecoder()
    for _ in range(2):  # the second time from memory
        assert decoder.decode(data) == read_by_protobuf(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_as_protobuf_reads_them_or_refused(data: bytes) -> None:
    try:
        expected = None if has_group(data) else read_by_protobuf(data)
    except Exception:  # noqa: BLE001 - whatever protobuf says about it
        expected = None
    if expected is None:
        with pytest.raises(InvalidArgument):
            RequestDecoder().decode(data)
    else:
        assert RequestDecoder().decode(data) == expected


@given(requests(), st.data())
def test_a_damaged_message_is_read_as_protobuf_reads_it_or_refused(
    request: pb.ModelInferRequest, data: st.DataObject
) -> None:
    good = bytearray(request.SerializeToString())
    if not good:
        return
    position = data.draw(st.integers(0, len(good) - 1))
    good[position] = data.draw(st.integers(0, 255))
    test_any_bytes_are_read_as_protobuf_reads_them_or_refused.hypothesis.inner_test(  # type: ignore[attr-defined]
        bytes(good[: data.draw(st.integers(0, len(good)))])
    )


def test_a_request_with_typed_contents_is_read_too() -> None:
    request = pb.ModelInferRequest(model_name="m", id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1, 2])
    decoded = RequestDecoder().decode(request.SerializeToString())
    assert decoded.id == "7"
    assert list(decoded.inputs[0].data.values) == [1, 2]  # type: ignore[union-attr]


def test_large_contents_are_not_copied() -> None:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(5000), bytes(50)])
    request.inputs.add(name="x")
    request.inputs.add(name="y")
    data = request.SerializeToString()
    large, small = RequestDecoder().decode(data).inputs
    assert isinstance(large.data, memoryview)
    assert large.data.obj is data
    assert isinstance(small.data, bytes)


@pytest.mark.parametrize(
    "field",
    [b"\x3a\x00", b"\x2a\x00", b"\x1a\x00", b"\x7a\x00", b"\x80\x01\x00", b"\xfd\x7f\0\0\0\0"],
    ids=["raw contents", "inputs", "ids", "unknown", "unknown numbers", "unknown words"],
)
def test_a_message_of_countless_fields_is_not_read_to_its_end(field: bytes) -> None:
    malformed = field * 100_000 + b"\xff"  # who reads on says that
    with pytest.raises(InvalidArgument, match="more than 16392 fields") as raised:
        RequestDecoder().decode(malformed)
    assert raised.value.reason == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize("part", ["inputs", "outputs"])
def test_countless_parameters_of_a_tensor_are_refused(part: str) -> None:
    request = pb.ModelInferRequest(model_name="m", id="7")
    for half in range(2):
        tensor = getattr(request, part).add()
        for number in range(2049):
            tensor.parameters[f"{half}-{number}"].bool_param = True
    with pytest.raises(InvalidArgument, match=r"\[request id: 7\].*at most 4096, got 4098"):
        RequestDecoder().decode(request.SerializeToString())


def test_a_message_is_charged_as_it_came_whatever_of_it_is_used() -> None:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(16), bytes(10**6)])
    request.inputs.add(name="x", datatype="FP32", shape=[4])
    data = request.SerializeToString()
    decoder = RequestDecoder()
    assert [decoder.decode(data).size_bytes for _ in range(2)] == [len(data)] * 2
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    request.parameters["note"].string_param = "a" * 10**6
    assert decoder.decode(request.SerializeToString()).size_bytes > 10**6


def test_an_error_on_a_stream_names_the_request_if_that_can_be_read() -> None:
    request = pb.ModelInferRequest(model_name="m", model_version="2", id="7")
    said = [
        pb.ModelStreamInferResponse.FromString(encode_stream_error(data, "no"))
        for data in (request.SerializeToString(), b"\xff", b"\x3a\x00" * 100_000)
    ]
    assert {one.error_message for one in said} == {"no"}
    assert [one.infer_response.id for one in said] == ["7", "", ""]
    assert said[0].infer_response.model_name == "m"
    assert said[0].infer_response.model_version == "2"


def test_what_takes_much_memory_once_it_is_read_is_not_remembered() -> None:
    decoder = RequestDecoder()
    request = pb.ModelInferRequest(model_name="m")
    for _ in range(33):
        request.inputs.add()
    for tensors in (request, pb.ModelInferRequest(model_name="m", inputs=[{"shape": [1] * 40}])):
        decoder.decode(tensors.SerializeToString())
    assert not decoder._heads


def test_what_is_remembered_is_bounded() -> None:
    decoder, encoder = RequestDecoder(), ReplyEncoder()
    for number in range(3000):
        request = pb.ModelInferRequest(model_name=f"m{number}")
        decoder.decode(request.SerializeToString())
        encoder.encode(InferenceReply(f"m{number}", 1, "", ()))
    assert len(decoder._heads) <= 1024
    assert len(encoder._heads) <= 1024


def test_a_reply_names_the_datatype_that_it_has() -> None:
    """A file may be replaced in place: name and shape stay, and the numbers become others."""
    encoder = ReplyEncoder()
    for datatype in ("FP32", "INT32"):
        output = OutputTensor("y", datatype, (1,), b"\0" * 4)
        data = encoder.encode(InferenceReply("m", 1, "", (output,)))
        assert pb.ModelInferResponse.FromString(data).outputs[0].datatype == datatype


outputs = st.lists(
    st.builds(
        OutputTensor,
        name=names,
        datatype=st.sampled_from(("FP32", "BYTES")),
        shape=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
        raw=st.sampled_from((b"", b"a" * 127, b"b" * 128, memoryview(b"c" * 20_000))),
    ),
    max_size=3,
).map(tuple)
replies = st.builds(
    InferenceReply, model=names, version=st.integers(0, 2**40), id=names, outputs=outputs
)


@given(replies)
def test_a_reply_is_what_protobuf_would_have_written(reply: InferenceReply) -> None:
    expected = pb.ModelInferResponse(
        model_name=reply.model, model_version=str(reply.version), id=reply.id
    )
    for output in reply.outputs:
        expected.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        expected.raw_output_contents.append(bytes(output.raw))
    encoder = ReplyEncoder()
    for _ in range(2):
        assert pb.ModelInferResponse.FromString(encoder.encode(reply)) == expected
        streamed = pb.ModelStreamInferResponse.FromString(encoder.encode_on_stream(reply))
    expected.parameters["triton_final_response"].bool_param = True
    assert streamed == pb.ModelStreamInferResponse(infer_response=expected)


@given(st.integers(0, 2**63 - 1))
def test_numbers_are_written_as_protobuf_writes_them(number: int) -> None:
    wire = pb.InferParameter(uint64_param=number).SerializeToString()
    assert wire[1:] == varint(number)
