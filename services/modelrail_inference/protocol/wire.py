"""ModelInfer's messages as bytes, without building protobuf objects for what is always the same.

Requests of one client differ in their id and in their raw contents; the rest of the message, its
head, comes again and again. So a request is split at its top-level fields, the head is parsed once
and remembered, and raw contents stay where they are: large ones are views of the message. Replies
are put together from parts that are made once per model and shape. The encoding is protobuf's
(https://protobuf.dev/programming-guides/encoding/); tests compare it with the library's.
"""

from __future__ import annotations

from contextlib import suppress

from google.protobuf.message import DecodeError

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail_inference.protocol.convert import MAX_PARTS, request_from_pb, stream_error_to_pb
from modelrail_inference.request.message import (
    InferenceReply,
    InferenceRequest,
    InputTensor,
    OutputTensor,
)
from modelrail_server.errors import InvalidArgument

# Tags of length-delimited fields: the field's number and the wire type 2.
_ID, _RAW_INPUT = 0x1A, 0x3A
# Inputs, outputs, parameters and raw contents, and what there is once.
_MAX_FIELDS = 4 * MAX_PARTS + 8
_MAX_LENGTH_BYTES = 5
_MAX_HEADS = 1024
_MAX_HEAD_BYTES = 4096
_MAX_HEAD_PARTS = 32
"""Once it is read, a part takes a hundred times its bytes in the message."""
_VIEW_BYTES = 4096
"""Raw contents of this size and more are not copied out of the message."""


class RequestDecoder:
    """Reads requests, and remembers the heads that it has seen: a bounded number of them."""

    def __init__(self) -> None:
        self._heads: dict[bytes, InferenceRequest] = {}

    def decode(self, data: bytes) -> InferenceRequest:
        """Reads a serialised `ModelInferRequest`.

        Raises:
            InvalidArgument: The bytes are no such message, or one that contradicts itself.
        """
        head, request_id, raw = _split(data)
        known = self._heads.get(head)
        if known is None:
            message = parse(head)
            message.id = request_id  # for what may be wrong
            if any(tensor.HasField("contents") for tensor in message.inputs):
                return request_from_pb(parse(data), message_bytes=len(data))
            known = request_from_pb(message)
            if len(head) <= _MAX_HEAD_BYTES and _parts_of(message) <= _MAX_HEAD_PARTS:
                if len(self._heads) >= _MAX_HEADS:
                    self._heads.clear()
                self._heads[head] = known
        inputs = known.inputs
        if len(raw) < len(inputs):
            inputs = (*map(_with_data, inputs, raw), *inputs[len(raw) :])
        else:
            inputs = tuple(map(_with_data, inputs, raw))
        return InferenceRequest(
            known.model,
            known.version,
            request_id,
            inputs,
            known.outputs,
            known.parameters,
            known.output_parameters,
            known.input_parameters,
            len(data),
        )


def encode_stream_error(data: bytes, problem: str) -> bytes:
    """Writes the error of one request on a stream, with what can be read of its id and model.

    Args:
        data: The request, as it came.
        problem: What is wrong.
    """
    request = pb.ModelInferRequest()
    with suppress(InvalidArgument):
        head, request_id, _ = _split(data)
        request = parse(head)
        request.id = request_id
    return stream_error_to_pb(request, problem).SerializeToString()


def _parts_of(message: pb.ModelInferRequest) -> int:
    parts = len(message.inputs) + len(message.outputs) + len(message.parameters)
    parts += sum(len(tensor.parameters) + len(tensor.shape) for tensor in message.inputs)
    return parts + sum(len(output.parameters) for output in message.outputs)


def parse(data: bytes) -> pb.ModelInferRequest:
    """Parses a whole message.

    Raises:
        InvalidArgument: The bytes are no such message.
    """
    try:
        return pb.ModelInferRequest.FromString(data)
    except DecodeError:
        raise _malformed() from None


def _malformed() -> InvalidArgument:
    return InvalidArgument(
        "the request is not a message of the expected type", reason="MALFORMED_MESSAGE"
    )


def _with_data(tensor: InputTensor, data: bytes | memoryview) -> InputTensor:
    return InputTensor(tensor.name, tensor.datatype, tensor.shape, data)


def _split(data: bytes) -> tuple[bytes, str, list[bytes | memoryview]]:
    """Returns the head, the id and the raw contents.

    Raises:
        InvalidArgument: The bytes are no protobuf message, or one of countless parts.
    """
    head: list[bytes] = []
    request_id = b""
    raw: list[bytes | memoryview] = []
    position, end = 0, len(data)
    fields = 0
    while position < end - 1:
        fields += 1
        if fields > _MAX_FIELDS:  # each of them takes time here, and memory
            raise InvalidArgument(
                f"expected at most {MAX_PARTS} inputs, outputs, parameters and raw contents each, "
                f"got more than {_MAX_FIELDS} fields",
                reason="REQUEST_TOO_LARGE",
            )
        start = position
        tag = data[position]
        if tag & 0x87 != 2:  # a long tag, or no length: a field that this protocol does not have
            position = _after_field(data, start)
            head.append(data[start:position])
            continue
        length = data[position + 1]
        position += 2
        if length & 0x80:
            length, position = _varint_at(data, position - 1, _MAX_LENGTH_BYTES)
        stop = position + length
        if stop > end:
            raise _malformed()
        if tag == _RAW_INPUT:
            part = data if length < _VIEW_BYTES else memoryview(data)
            raw.append(part[position:stop])
        elif tag == _ID:
            request_id = data[position:stop]
        else:
            head.append(data[start:stop])
        position = stop
    if position != end:
        raise _malformed()
    try:
        return b"".join(head), request_id.decode(), raw
    except UnicodeDecodeError:
        raise _malformed() from None


def _after_field(data: bytes, start: int) -> int:
    """Returns where a field of any kind ends."""
    tag, position = _varint_at(data, start)
    match tag & 7:
        case 0:
            _, stop = _varint_at(data, position)
        case 1:
            stop = position + 8
        case 2:
            length, position = _varint_at(data, position)
            stop = position + length
        case 5:
            stop = position + 4
        case _:  # groups, which proto3 has not
            raise _malformed()
    if stop > len(data):
        raise _malformed()
    return stop


def _varint_at(data: bytes, position: int, most: int = 10) -> tuple[int, int]:
    """Returns a number in protobuf's variable length, of `most` bytes, and where it ends."""
    number = 0
    for shift in range(0, 7 * most, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return number, position
    raise _malformed()


class ReplyEncoder:
    """Writes replies; what depends only on model, names and shapes is kept, a bounded number."""

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], bytes] = {}

    def encode(self, reply: InferenceReply) -> bytes:
        """Writes a `ModelInferResponse`, with one raw entry per output, also for empty ones."""
        return b"".join(self._parts(reply))

    def encode_on_stream(self, reply: InferenceReply) -> bytes:
        """Writes a `ModelStreamInferResponse`; it is the request's first and last."""
        parts = self._parts(reply)
        parts.append(_FINAL)
        size = sum(map(len, parts))
        return b"".join((b"\x12", varint(size), *parts))

    def _parts(self, reply: InferenceReply) -> list[bytes | memoryview]:
        outputs = reply.outputs
        key = (reply.model, reply.version, *[(o.name, o.datatype, o.shape) for o in outputs])
        head = self._heads.get(key)
        if head is None:
            head = _head(reply)
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[key] = head
        parts: list[bytes | memoryview] = [head]
        if reply.id:
            encoded = reply.id.encode()
            parts += (b"\x1a", varint(len(encoded)), encoded)
        for output in outputs:
            raw = output.raw
            parts += (b"\x32", varint(len(raw)), raw)
        return parts


def _head(reply: InferenceReply) -> bytes:
    message = pb.ModelInferResponse(model_name=reply.model, model_version=str(reply.version))
    for output in reply.outputs:
        _add_output(message, output)
    return message.SerializeToString()


def _add_output(message: pb.ModelInferResponse, output: OutputTensor) -> None:
    message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)


def _final() -> bytes:
    message = pb.ModelInferResponse()
    message.parameters["triton_final_response"].bool_param = True
    return message.SerializeToString()


_FINAL = _final()


def varint(number: int) -> bytes:
    """Returns a number from 0 in protobuf's variable length."""
    if number < 0x80:
        return _SHORT[number]
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SHORT = [bytes((number,)) for number in range(0x80)]
