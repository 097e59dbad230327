"""Raw tensors: what is encoded comes back, and what is no tensor is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelrail.tensor import NUMPY_TYPES, TensorError, datatype_of, from_raw, to_raw

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMERIC = [name for name in NUMPY_TYPES if name not in ("BYTES", "BF16")]


@given(st.data(), st.sampled_from(NUMERIC))
def test_every_numeric_array_comes_back_as_it_was(data: Any, datatype: str) -> None:
    array = data.draw(arrays.arrays(NUMPY_TYPES[datatype], SHAPES))
    assert datatype_of(array) == datatype
    again = from_raw(to_raw(array, datatype), datatype, array.shape)
    np.testing.assert_array_equal(again, array)
    assert not again.flags.writeable


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_strings_come_back_byte_for_byte(strings: list[bytes]) -> None:
    array = np.empty(len(strings), dtype=object)
    array[:] = strings
    assert from_raw(to_raw(array, "BYTES"), "BYTES", array.shape).tolist() == strings


@given(st.binary(max_size=60), st.integers(0, 5))
def test_no_bytes_do_anything_but_decode_or_be_refused(raw: bytes, count: int) -> None:
    for datatype in NUMPY_TYPES:
        try:
            array = from_raw(raw, datatype, [count])
        except TensorError:
            continue
        assert to_raw(array, datatype) == raw


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    array = from_raw(b"\xc0\x3f", "BF16", [1])
    assert float(array[0]) == 1.5
    assert datatype_of(array) == "BF16"
    assert to_raw(array, "BF16") == b"\xc0\x3f"


def test_byte_order_is_turned_and_nothing_else_is() -> None:
    assert to_raw(np.array([1], ">i4"), "INT32") == b"\1\0\0\0"
    with pytest.raises(TensorError, match="expected an array of int32"):
        to_raw(np.array([1], "i8"), "INT32")


@pytest.mark.parametrize("element", [None, 3, ["a"]])
def test_an_element_that_is_no_string_is_refused(element: object) -> None:
    array = np.empty(1, dtype=object)
    array[0] = element
    with pytest.raises(TensorError, match="must be bytes or str"):
        to_raw(array, "BYTES")


def test_unknown_datatypes_and_negative_sizes_are_refused() -> None:
    with pytest.raises(TensorError, match="unknown datatype"):
        from_raw(b"", "FLOAT", [0])
    with pytest.raises(TensorError, match="negative"):
        from_raw(b"", "FP32", [-1])
    with pytest.raises(TensorError, match="at most"):
        from_raw(b"", "BYTES", [2**40])
