"""Any input, over the wire, to models that are loaded: answered right, or refused by name.

Rows 28 to 31 of the acceptance table. What each wording is: `test_inference_service.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.faults.models import doubling, echo, output, request_for, scalar, table, text
from tests.faults.service import MIB, SECONDS, Service

Code = grpc.StatusCode
INVALID = Code.INVALID_ARGUMENT

bounded = settings(
    max_examples=150,
    phases=(Phase.generate,),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Wire:
    """A service, and a connection to it."""

    def __init__(self, service: Service, channel: Any) -> None:
        self.service = service
        self.channel = channel
        self.stub: Any = GRPCInferenceServiceStub(channel)

    def infer(self, request: pb.ModelInferRequest) -> Any:
        return output(self.stub.ModelInfer(request, timeout=SECONDS))

    def refusal(self, request: pb.ModelInferRequest) -> tuple[Code, str, set[str]]:
        """Code, text and the names of the wrong fields."""
        with pytest.raises(grpc.RpcError) as caught:
            self.stub.ModelInfer(request, timeout=SECONDS)
        error: Any = caught.value
        status: Any = rpc_status.from_call(error)
        found = error_details_pb2.BadRequest()
        fields = set()
        for detail in status.details if status else ():
            if detail.Unpack(found):
                fields |= {violation.field for violation in found.field_violations}
        return error.code(), str(error.details()), fields

    def lives(self) -> None:
        assert self.infer(request_for("doubling", np.ones((1, 4), np.float32))) == [[2.0] * 4]
        assert self.service.process.poll() is None


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    folder = tmp_path_factory.mktemp("input")
    service = Service(folder, (doubling, table, text, echo, scalar), ("--vouched",))
    try:
        with service.channel() as channel:
            yield Wire(service, channel)
    finally:
        service.close()


# --- row 29: shapes and sizes ---------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(-2, 33),
    st.sampled_from([4, 2**31, 2**32, 2**61, 2**62, 2**63 - 1, -(2**63)]),
)
SHAPES = st.one_of(
    st.lists(SIZES, max_size=5),
    st.tuples(SIZES, st.just(4)).map(list),
    st.lists(st.just(1), min_size=95, max_size=100),
)


@bounded
@given(shape=SHAPES, count=st.integers(0, 40), cut=st.sampled_from([0, 0, 0, 1, 3]))
def test_a_shape_and_its_bytes_agree_or_the_input_is_named(
    wire: Wire, shape: list[int], count: int, cut: int
) -> None:
    if len(shape) == 2 and shape[1] == 4 and 0 < shape[0] < 8:
        count = 4 * shape[0]  # often enough, nothing is wrong
    raw = np.arange(count, dtype=np.float32).tobytes()
    raw = raw[: len(raw) - cut]
    request = pb.ModelInferRequest(model_name="doubling", raw_input_contents=[raw])
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    right = len(shape) == 2 and shape[1] == 4 and 1 <= shape[0] <= 32
    if right and len(raw) == 16 * shape[0]:
        y = 2 * np.arange(count, dtype=np.float32).reshape(shape)
        assert wire.infer(request) == y.tolist()
        return
    code, message, fields = wire.refusal(request)
    assert code is INVALID, (shape, message)
    assert "'x'" in message or "batch-size" in message, message
    assert fields, message
    assert all(field.startswith("inputs[0]") for field in fields), fields


@bounded
@given(
    shape=st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**62, 2**63 - 1]), max_size=3),
    claims=st.sampled_from([0, 1, 2**31, 2**32 - 1]),
    model=st.sampled_from(["text", "echo", "table"]),
)
def test_no_shape_and_no_length_makes_the_server_take_memory_that_it_does_not_fill(
    wire: Wire, shape: list[int], claims: int, model: str
) -> None:
    datatype = {"text": "BYTES", "echo": "FP32", "table": "INT64"}[model]
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    request.raw_input_contents.append(claims.to_bytes(4, "little") + b"\0" * 4)
    before = wire.service.peak_bytes
    try:
        wire.stub.ModelInfer(request, timeout=SECONDS)
    except grpc.RpcError as error:
        refused: Any = error
        assert refused.code() is INVALID, (model, shape, claims, refused.details())
    assert wire.service.peak_bytes - before < 16 * MIB


# --- row 30: names, datatypes, contents -----------------------------------------------------------

Mistake = tuple[Callable[[pb.ModelInferRequest], Any], str]


def mixed(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.append(1)


def twice(request: pb.ModelInferRequest) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def nothing(request: pb.ModelInferRequest) -> None:
    request.ClearField("inputs")
    request.ClearField("raw_input_contents")


def another(request: pb.ModelInferRequest) -> None:
    request.inputs.add(name="more", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(b"\0" * 16)


# What is done to a good request, and how the field that is wrong for it begins.
MISTAKES: dict[str, Mistake] = {
    "another name": (lambda r: setattr(r.inputs[0], "name", "z"), "inputs"),
    "no name": (lambda r: setattr(r.inputs[0], "name", ""), "inputs"),
    "another datatype": (lambda r: setattr(r.inputs[0], "datatype", "UINT16"), "inputs[0].data"),
    "no datatype": (lambda r: setattr(r.inputs[0], "datatype", ""), "inputs[0].data"),
    "made-up datatype": (lambda r: setattr(r.inputs[0], "datatype", "FP32 "), "inputs[0].data"),
    "no inputs": (nothing, "inputs"),
    "an input twice": (twice, "inputs"),
    "one input more": (another, "inputs"),
    "raw and typed": (mixed, ""),
    "no contents": (lambda r: r.ClearField("raw_input_contents"), "inputs[0].contents"),
    "unknown output": (lambda r: r.outputs.add(name="q"), "outputs"),
    "an output twice": (
        lambda r: (r.outputs.add(name="y"), r.outputs.add(name="y")),
        "outputs",
    ),
}
GOOD: dict[str, np.ndarray[Any, Any]] = {
    "doubling": np.ones((2, 4), np.float32),
    "table": np.ones((2, 1), np.int64),
    "text": np.array([[b"a"], [b"b"]], object),
    "echo": np.ones((2, 3), np.float32),
    "scalar": np.array(1, np.float32),
}


@pytest.mark.parametrize("model", GOOD)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_its_field_whatever_the_model(
    wire: Wire, model: str, mistake: str
) -> None:
    request = request_for(model, GOOD[model])
    apply, field = MISTAKES[mistake]
    apply(request)
    code, message, fields = wire.refusal(request)
    assert code is INVALID, message
    assert fields, message
    assert any(wrong.startswith(field) for wrong in fields), (fields, message)


@bounded
@given(
    model=st.sampled_from(sorted(GOOD)),
    mistakes=st.lists(st.sampled_from(sorted(MISTAKES)), min_size=2, max_size=4, unique=True),
)
def test_several_mistakes_in_one_request_are_the_callers_too(
    wire: Wire, model: str, mistakes: list[str]
) -> None:
    request = request_for(model, GOOD[model])
    for mistake in mistakes:
        if len(request.inputs) and len(request.raw_input_contents):
            MISTAKES[mistake][0](request)
    code, message, fields = wire.refusal(request)
    assert code is INVALID, message
    assert fields, message


# --- row 31: values -------------------------------------------------------------------------------


@bounded
@given(bits=st.lists(st.integers(0, 2**32 - 1), max_size=12), model=st.booleans())
def test_every_bit_pattern_of_a_number_is_a_value(wire: Wire, bits: list[int], model: bool) -> None:
    """NaN with any payload, infinities, denormals, negative zero, and no numbers at all."""
    if model:
        x = np.array(bits, np.uint32).view(np.float32).reshape(len(bits), 1)
        reply = wire.stub.ModelInfer(request_for("echo", x), timeout=SECONDS)
        assert reply.raw_output_contents[0] == x.tobytes()
        assert list(reply.outputs[0].shape) == [len(bits), 1]
        return
    x = np.resize(np.array([*bits, 1, 0x7FC00000, 0xFF800000], np.uint32), (3, 4)).view(np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(wire.infer(request_for("doubling", x)), x * np.float32(2))


@pytest.mark.parametrize("value", [1.5, math.nan, -math.inf, 5e-324, 0.0])
def test_a_scalar_has_no_dimension(wire: Wire, value: float) -> None:
    x = np.array(value, np.float32)
    reply = wire.stub.ModelInfer(request_for("scalar", x), timeout=SECONDS)
    assert list(reply.outputs[0].shape) == []
    assert reply.raw_output_contents[0] == x.tobytes()


def test_a_batch_of_nothing_is_refused_by_models_that_batch(wire: Wire) -> None:
    for model, shape in {"doubling": (0, 4), "table": (0, 1), "text": (0, 1)}.items():
        request = request_for(model, np.zeros(shape, GOOD[model].dtype))
        code, message, fields = wire.refusal(request)
        assert (code, fields) == (INVALID, {"inputs[0].shape"}), message
        assert "batch-size must be >= 1" in message


@bounded
@given(words=st.lists(st.one_of(st.binary(max_size=12), st.text().map(str.encode)), min_size=1))
def test_strings_keep_every_byte_or_the_one_that_is_no_text_is_named(
    wire: Wire, words: list[bytes]
) -> None:
    words = words[:32]
    request = request_for("text", np.array([[word] for word in words], object))
    wrong = [index for index, word in enumerate(words) if not is_text(word)]
    if not wrong:
        assert wire.infer(request) == [[word] for word in words]
        return
    code, message, fields = wire.refusal(request)
    assert (code, fields) == (INVALID, {"inputs[0].contents"}), message
    assert f"'x': string {wrong[0]}" in message


def is_text(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("word", [b"\0", b"", b"\0" * MIB, b"a" * MIB, "ž🐎".encode() * 100_000])
def test_long_and_strange_strings_keep_every_byte(wire: Wire, word: bytes) -> None:
    request = request_for("text", np.array([[word], [b"next"]], object))
    assert wire.infer(request) == [[word], [b"next"]]


def test_one_broken_byte_in_a_megabyte_is_found(wire: Wire) -> None:
    word = b"a" * MIB + b"\xff"
    code, message, _ = wire.refusal(request_for("text", np.array([[b"ok"], [word]], object)))
    assert code is INVALID
    assert "'x': string 1" in message
    assert len(message) < 1000


# --- row 28: bytes that are nearly a request ------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good request for a model that is loaded, cut, flipped, added to, or nested."""
    model = draw(st.sampled_from(sorted(GOOD)))
    whole: bytes = request_for(model, GOOD[model]).SerializeToString()
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(whole) - 1)) if whole else 0
        match draw(st.sampled_from(["cut", "flip", "insert", "unknown", "repeat", "deep"])):
            case "cut":
                whole = whole[:position]
            case "flip":
                byte = draw(st.integers(0, 255))
                whole = whole[:position] + bytes([byte]) + whole[position + 1 :]
            case "insert":
                whole = whole[:position] + draw(st.binary(max_size=9)) + whole[position:]
            case "unknown":  # fields 3000 of bytes, varint and fixed kinds
                kinds = (b"\xc2\xbb\x01\x03abc", b"\xc0\xbb\x01\x07", b"\xc5\xbb\x01\0\0\0\0")
                whole += draw(st.sampled_from(kinds))
            case "repeat":
                whole += whole
            case "deep":  # a group in a group …
                whole += b"\xc3\xbb\x01" * draw(st.sampled_from([5, 99, 101, 2000]))
    return whole


@settings(bounded, max_examples=400)
@given(message=damaged(), stream=st.booleans())
def test_a_damaged_request_for_a_model_is_the_callers_mistake(
    wire: Wire, message: bytes, stream: bool
) -> None:
    kind = "ModelStreamInfer" if stream else "ModelInfer"
    call: Any = wire.channel.stream_stream(f"/inference.GRPCInferenceService/{kind}")
    code = None
    try:
        list(call(iter([message]), timeout=SECONDS))
    except grpc.RpcError as error:
        refused: Any = error
        code = refused.code()
    assert code in {None, INVALID, Code.NOT_FOUND, Code.UNIMPLEMENTED}, (code, message)
    wire.lives()
