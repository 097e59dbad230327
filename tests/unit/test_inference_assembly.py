"""Batches put together and taken apart: every element where it belongs, nothing copied in vain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES, to_raw
from modelrail_inference.model.batching import PaddedInput, Padding
from modelrail_inference.model.definition import LoadedModel, LoadError, ModelSettings
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature, TensorSpec
from modelrail_inference.request.assembly import (
    BatchBuffers,
    BatchLayout,
    RowsError,
    assemble,
    take_apart,
)
from modelrail_inference.request.check import RequestChecker
from modelrail_inference.request.feed import Feed
from modelrail_inference.request.message import InferenceRequest, InputTensor, TypedContents
from modelrail_inference.runtime.padded_signature import split_mask
from modelrail_inference.scheduling.run_time import RunTime
from modelrail_server.errors import InvalidArgument

NAN = math.nan
X = TensorSpec("x", "FP32", (-1, 3))
S = TensorSpec("s", "BYTES", (-1,))
IDS = TensorSpec("ids", "INT64", (-1, -1))
MASK = TensorSpec("mask", "INT64", (-1, -1))
HIDDEN = TensorSpec("hidden", "FP32", (-1, -1, 2))
PADDING = Padding(
    edges=(4, 8), inputs={"ids": PaddedInput(1, 9)}, outputs={"hidden": 1}, mask="mask"
)


def model(
    *inputs: TensorSpec, padding: Padding | None = None, rejects_nonfinite: bool = False
) -> LoadedModel:
    return LoadedModel(
        model="m",
        number=1,
        signature=Signature(inputs, (HIDDEN,)),
        max_batch_size=16,
        provider=Provider.CPU,
        session=None,
        settings=ModelSettings(
            max_batch_size=16, padding=padding, rejects_nonfinite=rejects_nonfinite
        ),
        mask=MASK if padding else None,
    )


def feed(checked: LoadedModel, **arrays: NDArray[Any]) -> Feed:
    specs = {spec.name: spec for spec in checked.signature.inputs}
    inputs = tuple(
        InputTensor(name, specs[name].datatype, array.shape, to_raw(array, specs[name].datatype))
        for name, array in arrays.items()
    )
    return RequestChecker(checked).check(InferenceRequest("m", inputs=inputs))


def test_a_batch_of_one_request_is_not_copied() -> None:
    rows = np.arange(6, dtype="<f4").reshape(2, 3)
    single = feed(model(X), x=rows)
    assert BatchLayout(batchable=True).is_whole(single)
    batch = single.arrays()["x"]
    data = single.inputs[0][0].data
    assert isinstance(data, bytes)
    assert np.shares_memory(batch, np.frombuffer(data, "<f4"))


def test_a_request_for_a_model_without_inputs_is_one_item() -> None:
    constant = LoadedModel("m", 1, Signature((), (HIDDEN,)), 0, Provider.CPU, None)
    assert RequestChecker(constant).check(InferenceRequest("m")).batch_size == 1


def test_larger_batches_use_the_same_memory_again() -> None:
    buffers, layout = BatchBuffers(), BatchLayout(batchable=True)
    feeds = [feed(model(X), x=np.full((n, 3), n, "<f4")) for n in (1, 2, 3)]
    first = assemble(feeds, layout, buffers)["x"]
    assert first[:, 0].tolist() == [1, 2, 2, 3, 3, 3]
    second = assemble(feeds[:2], layout, buffers)["x"]
    assert second[:, 0].tolist() == [1, 2, 2]
    assert np.shares_memory(first, second)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_every_request_gets_its_own_rows_back(sizes: list[int]) -> None:
    feeds = [
        feed(
            model(X, S),
            x=np.full((n, 3), marker, "<f4"),
            s=np.array([f"{marker}ž\0"] * n, object),
        )
        for marker, n in enumerate(sizes)
    ]
    for each in feeds:
        each.decode()
    layout = BatchLayout(batchable=True, buckets=(1, 2, 4, 8, 16, 24))
    inputs = assemble(feeds, layout, BatchBuffers())
    assert inputs["x"].shape[0] in layout.buckets
    assert inputs["s"].shape[0] == inputs["x"].shape[0]
    specs = [TensorSpec("x", "FP32", (-1, 3)), TensorSpec("s", "BYTES", (-1,))]
    parts = take_apart([inputs["x"], inputs["s"]], specs, feeds, layout)
    for marker, (n, part) in enumerate(zip(sizes, parts, strict=True)):
        assert part["x"].tolist() == [[marker] * 3] * n
        assert part["s"].tolist() == [f"{marker}ž\0"] * n
        assert np.shares_memory(part["x"], inputs["x"])


def test_different_lengths_are_padded_masked_and_cut_back() -> None:
    padded = model(IDS, padding=PADDING)
    feeds = [
        feed(padded, ids=np.array([[1, 2, 3]], "<i8")),
        feed(padded, ids=np.array([[4], [5]], "<i8")),
    ]
    assert feeds[0].key == feeds[1].key
    layout = BatchLayout(batchable=True, padding=PADDING, buckets=(2, 4), mask=MASK)
    inputs = assemble(feeds, layout, BatchBuffers())
    assert inputs["ids"].tolist() == [[1, 2, 3, 9], [4, 9, 9, 9], [5, 9, 9, 9], [5, 9, 9, 9]]
    assert inputs["mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    hidden = np.arange(4 * 4 * 2, dtype=np.float32).reshape(4, 4, 2)
    first, second = take_apart([hidden], [HIDDEN], feeds, layout)
    assert first["hidden"].tolist() == hidden[:1, :3].tolist()
    assert second["hidden"].tolist() == hidden[1:3, :1].tolist()


def test_requests_of_different_edges_share_no_batch() -> None:
    padded = model(IDS, padding=PADDING)
    short = feed(padded, ids=np.zeros((1, 4), "<i8"))
    long = feed(padded, ids=np.zeros((1, 5), "<i8"))
    assert short.key != long.key
    assert (short.edge, long.edge) == (4, 8)


def test_a_request_that_is_longer_than_all_edges_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="expected a length of at most 8, got 9"):
        feed(model(IDS, padding=PADDING), ids=np.zeros((1, 9), "<i8"))


def test_padded_inputs_of_one_request_have_one_length() -> None:
    two = Padding(edges=(8,), inputs={"ids": PaddedInput(1), "types": PaddedInput(1)})
    padded = model(IDS, TensorSpec("types", "INT64", (-1, -1)), padding=two)
    with pytest.raises(InvalidArgument, match="expected 3 at axis 1, got 4"):
        feed(padded, ids=np.zeros((1, 3), "<i8"), types=np.zeros((1, 4), "<i8"))


def test_an_output_without_a_row_for_each_item_belongs_to_nobody() -> None:
    feeds = [feed(model(X), x=np.zeros((1, 3), "<f4")) for _ in range(2)]
    layout = BatchLayout(batchable=True)
    for output in (np.zeros((1, 3)), np.zeros(())):
        with pytest.raises(RowsError, match="expected a first dimension"):
            take_apart([output], [X], feeds, layout)


def test_the_server_fills_the_mask_and_callers_do_not_see_it() -> None:
    graph = Signature((IDS, MASK), (HIDDEN,))
    visible, mask = split_mask(graph, PADDING)
    assert [spec.name for spec in visible.inputs] == ["ids"]
    assert mask == MASK
    assert split_mask(graph, None) == (graph, None)


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        (Padding((8,), {"none": PaddedInput(1)}), r"inputs.none: expected one of \['ids', 'mask'"),
        (Padding((8,), {"ids": PaddedInput(2)}), "inputs.ids: expected an axis of any length"),
        (Padding((8,), {"ids": PaddedInput(1)}, {"hidden": 2}), "outputs.hidden: expected an axis"),
        (Padding((8,), {"ids": PaddedInput(1)}, mask="none"), "mask: expected an input"),
        (Padding((8,), {"mask": PaddedInput(1)}, mask="mask"), "mask: expected an input"),
    ],
)
def test_padding_that_does_not_fit_the_graph_is_refused(padding: Padding, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        split_mask(Signature((IDS, MASK), (HIDDEN,)), padding)


FLAGS = TensorSpec("flags", "BOOL", (-1, 3))
MANY_FLAGS = TensorSpec("flags", "BOOL", (-1, -1))


@pytest.mark.parametrize("spec", [FLAGS, MANY_FLAGS], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("view", [bytes, memoryview])
def test_flags_are_0_or_1_or_the_first_that_is_not_is_named(
    spec: TensorSpec, view: type[bytes]
) -> None:
    for raw in (b"\0\1\1\1\0\0", b"\0\1\1\1\2\xff"):
        tensor = InputTensor("flags", "BOOL", (2, 3), view(raw))
        checked = RequestChecker(model(X, spec)).check(
            InferenceRequest("m", inputs=(InputTensor("x", "FP32", (2, 3), bytes(24)), tensor))
        )
        if raw[4] < 2:
            checked.decode()
            array = checked.arrays()["flags"]
            assert array.tobytes() == raw
            assert np.shares_memory(array, np.frombuffer(raw, bool)) or view is bytes
            continue
        for reading in (checked.decode, checked.arrays):
            with pytest.raises(InvalidArgument) as refused:
                reading()
            assert str(refused.value) == (
                "input 'flags': expected 0 or 1 for BOOL, got 2 at element 4"
            )
            assert [one.field for one in refused.value.violations] == ["inputs[1].contents"]


def test_typed_flags_are_0_or_1_whatever_came() -> None:
    typed = TypedContents("bool_contents", [0, 1, 2], 3)
    tensor = InputTensor("flags", "BOOL", (1, 3), typed)
    checked = RequestChecker(model(FLAGS)).check(InferenceRequest("m", inputs=(tensor,)))
    assert checked.arrays()["flags"].tobytes() == b"\0\1\1"


def test_no_flags_are_no_mistake() -> None:
    tensor = InputTensor("flags", "BOOL", (1, 0), b"")
    checked = RequestChecker(model(MANY_FLAGS)).check(InferenceRequest("m", inputs=(tensor,)))
    assert checked.arrays()["flags"].shape == (1, 0)


def padded_with(value: float, datatype: str) -> tuple[Signature, Padding]:
    ids = TensorSpec("ids", datatype, (-1, -1))
    return Signature((ids,), (HIDDEN,)), Padding((4,), {"ids": PaddedInput(1, value)})


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("UINT8", -1, "a whole number from 0 to 255 for UINT8, got -1"),
        ("UINT64", 2**64, f"a whole number from 0 to {2**64 - 1} for UINT64, got {2**64}"),
        ("INT8", 300, "a whole number from -128 to 127 for INT8, got 300"),
        ("INT32", 99999999999, "for INT32, got 99999999999"),
        ("INT64", 1e300, r"for INT64, got 1e\+300"),
        pytest.param("INT64", 10**4000, "for INT64, got 10{39}…$", id="INT64-large"),
        ("INT64", NAN, "for INT64, got nan"),
        ("INT64", -math.inf, "for INT64, got -inf"),
        ("INT64", 0.5, "for INT64, got 0.5"),
        ("BOOL", 2, "0 or 1 for BOOL, got 2"),
        ("BOOL", 0.5, "0 or 1 for BOOL, got 0.5"),
        ("FP16", 1e9, "a number within the range of FP16, got 1000000000.0"),
        ("BF16", 1e39, r"a number within the range of BF16, got 1e\+39"),
        ("FP32", -1e39, r"a number within the range of FP32, got -1e\+39"),
        pytest.param(
            "FP64", 10**400, "a number within the range of FP64, got 10{39}…$", id="FP64-large"
        ),
        ("BYTES", 7, "no value for BYTES, which is padded with empty strings, got 7"),
    ],
)
def test_a_value_that_the_datatype_cannot_hold_pads_nothing(
    datatype: str, value: float, expected: str
) -> None:
    signature, padding = padded_with(value, datatype)
    with pytest.raises(LoadError, match=rf"padding\.inputs\.ids\.value: expected .*{expected}"):
        split_mask(signature, padding)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("UINT8", 255),
        ("INT8", -128.0),
        ("INT64", 2**63 - 1),
        ("UINT64", 2**64 - 1),
        ("UINT64", 2.0**63),
        ("BOOL", 1),
        ("BOOL", 0.0),
        ("FP16", -65504),
        ("FP16", math.inf),
        ("BF16", 0.1),
        ("BF16", 2**100),
        ("FP32", 10**30),
        ("FP32", NAN),
        ("FP64", -math.inf),
    ],
)
def test_a_value_that_was_taken_is_what_pads(datatype: str, value: float) -> None:
    signature, padding = padded_with(value, datatype)
    split_mask(signature, padding)
    ids = signature.inputs[0]
    one = feed(model(ids, padding=padding), ids=np.zeros((1, 3), NUMPY_TYPES[datatype]))
    filled = assemble([one], BatchLayout(batchable=True, padding=padding), BatchBuffers())["ids"]
    assert filled[0].tolist()[:3] == [0, 0, 0]
    if math.isnan(value):
        assert np.isnan(filled[0, 3])
    elif ids.datatype.startswith(("FP", "BF")):
        assert float(filled[0, 3]) == pytest.approx(value, rel=0.01)
    else:
        assert int(filled[0, 3]) == value


def test_strings_are_padded_with_empty_ones() -> None:
    signature, padding = padded_with(0, "BYTES")
    assert split_mask(signature, padding) == (signature, None)


def test_the_time_of_a_run_is_learned_as_linear_in_its_items() -> None:
    learned = RunTime()
    assert learned.seconds(8) == 0.0
    learned.add(4, 0.4)
    assert learned.seconds(8) == pytest.approx(0.8)
    assert learned.seconds(1) == pytest.approx(0.4)
    for _ in range(50):
        for items in (1, 2, 8):
            learned.add(items, 0.1 + 0.01 * items)
    assert learned.seconds(4) == pytest.approx(0.14, rel=0.01)
    for _ in range(50):  # the machine has become slower
        for items in (1, 2, 8):
            learned.add(items, 0.2 + 0.02 * items)
    assert learned.seconds(4) == pytest.approx(0.28, rel=0.01)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rest", [(3,), (-1,)], ids=["fixed", "dynamic"])
def test_numbers_that_are_not_finite_are_refused_where_the_model_says_so(
    datatype: str, bad: float, rest: tuple[int, ...]
) -> None:
    x = TensorSpec("x", datatype, (-1, *rest))
    array = np.arange(6).reshape(2, 3).astype(NUMPY_TYPES[datatype])
    rejecting = model(x, rejects_nonfinite=True)
    assert feed(rejecting, x=array).arrays()["x"].tolist() == array.tolist()
    array[1, 1] = bad
    with pytest.raises(InvalidArgument) as refused:
        feed(rejecting, x=array).decode()
    assert str(refused.value) == f"input 'x': expected finite numbers, got {bad} at element 4"
    assert [violation.field for violation in refused.value.violations] == ["inputs[0].contents"]
    feed(model(x), x=array).decode()


def test_typed_and_padded_numbers_are_looked_at_too_and_whole_numbers_pass() -> None:
    values = TypedContents("fp32_contents", [1.0, NAN, 3.0], size_bytes=12)
    typed = InferenceRequest("m", inputs=(InputTensor("x", "FP32", (1, 3), values),))
    with pytest.raises(InvalidArgument, match="got nan at element 1"):
        RequestChecker(model(X, rejects_nonfinite=True)).check(typed).decode()
    wide = TensorSpec("x", "FP32", (-1, -1))
    padded = model(wide, padding=Padding((4,), {"x": PaddedInput(1)}), rejects_nonfinite=True)
    with pytest.raises(InvalidArgument, match="got inf at element 0"):
        feed(padded, x=np.full((1, 2), np.inf, np.float32)).decode()
    assert feed(model(IDS, rejects_nonfinite=True), ids=np.ones((1, 2), np.int64)).arrays()
