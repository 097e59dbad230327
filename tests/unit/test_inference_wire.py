"""Messages of the hot path, written and read by hand, against what protobuf writes and reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail_inference.protocol.convert import request_from_pb
from modelrail_inference.protocol.wire import ReplyEncoder, RequestDecoder, varint
from modelrail_inference.request.message import InferenceReply, OutputTensor
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


@given(requests())
def test_a_request_is_read_as_protobuf_reads_it(request: pb.ModelInferRequest) -> None:
    data = request.SerializeToString()
    decoder = RequestDecoder()
    for _ in range(2):  # the second time from memory
        assert decoder.decode(data) == request_from_pb(pb.ModelInferRequest.FromString(data))


@given(st.binary(max_size=64))
def test_any_bytes_are_read_as_protobuf_reads_them_or_refused(data: bytes) -> None:
    try:
        expected = request_from_pb(pb.ModelInferRequest.FromString(data))
    except Exception:  # noqa: BLE001 - whatever protobuf says about it
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


def test_what_is_remembered_is_bounded() -> None:
    decoder, encoder = RequestDecoder(), ReplyEncoder()
    for number in range(3000):
        request = pb.ModelInferRequest(model_name=f"m{number}")
        decoder.decode(request.SerializeToString())
        encoder.encode(InferenceReply(f"m{number}", 1, "", ()))
    assert len(decoder._heads) <= 1024
    assert len(encoder._heads) <= 1024


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
