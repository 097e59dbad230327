"""Which graphs are certain to end, read from the bytes of the file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelrail_inference.runtime.graph import _is_bounded, _MalformedError, is_bounded


def saved(path: Path, *operators: str, **options: str) -> Path:
    nodes = [helper.make_node(operator, ["x"], ["y"], **options) for operator in operators]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1000], bytes(4000), raw=True)
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value], [value], [weights])), path)
    return path


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        (["Gemm", "Relu", "Softmax"], True),
        (["Relu", "Loop"], False),
        (["If"], False),
        (["Range"], False),
        (["Expand", "Relu"], False),
        (["StringConcat"], False),
        (["NobodyKnowsThis"], False),
        ([], False),
    ],
)
def test_an_operator_that_can_take_any_time_makes_a_graph_unbounded(
    tmp_path: Path, operators: list[str], expected: bool
) -> None:
    assert is_bounded(saved(tmp_path / "m.onnx", *operators)) is expected


def test_a_domain_that_is_not_known_is_not_trusted(tmp_path: Path) -> None:
    assert not is_bounded(saved(tmp_path / "m.onnx", "Relu", domain="my.ops"))


def test_a_graph_with_functions_of_its_own_is_not_trusted(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", "Relu")
    model = onnx.load(path)
    model.functions.append(helper.make_function("d", "f", ["x"], ["y"], [], []))
    onnx.save(model, path)
    assert not is_bounded(path)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x3a\xff\xff\xff\xff\x0f"])
def test_a_file_that_is_no_model_is_not_trusted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert not is_bounded(tmp_path / "m.onnx")
    assert not is_bounded(tmp_path / "absent.onnx")


@given(st.binary(max_size=200))
def test_random_bytes_end(content: bytes) -> None:
    with suppress(_MalformedError):
        _is_bounded(b"\x3a" + bytes([len(content) & 0x7F]) + content)
