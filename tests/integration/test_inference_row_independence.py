"""Models nobody has configured are batched only when their rows are shown not to mix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelrail_inference.model.definition import LoadedModel, VersionDefinition
from modelrail_inference.model.provider import Provider
from modelrail_inference.runtime.loader import SessionLoader

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def load(
    path: Path,
    nodes: list[Any],
    *,
    kind: int = FLOAT,
    shape: tuple[str | int, ...] = ("n", 3),
    out: tuple[int, tuple[str | int, ...]] = (FLOAT, ("n", 3)),
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
) -> LoadedModel:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", *out)],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    loader = SessionLoader(Provider.CPU, 1, 64, 60.0)
    return loader.load(VersionDefinition("m", 1, path, "1"))


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_node("Softmax", ["x"], ["y"], axis=1)],
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_node("Identity", ["x"], ["y"])],
    ],
)
def test_rows_that_do_not_mix_are_put_together(tmp_path: Path, nodes: list[Any]) -> None:
    weights = {"w": np.eye(3, dtype=np.float32)}
    model = load(tmp_path / "m.onnx", nodes, weights=weights)
    assert model.batching_reason == ""
    assert model.batching() is not None


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
            helper.make_node("Sub", ["x", "m"], ["y"]),
        ],
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["a"]),
            helper.make_node("MatMul", ["a", "x"], ["y"]),
        ],
    ],
)
def test_rows_that_mix_run_alone(tmp_path: Path, nodes: list[Any]) -> None:
    model = load(tmp_path / "m.onnx", nodes, weights={"axes": np.array([0], np.int64)})
    assert model.batching_reason == "output 'y' of a row depends on the other rows of its batch"
    assert model.batching() is None


def test_a_model_that_rolls_dice_runs_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    model = load(tmp_path / "m.onnx", nodes)
    assert "differs between two runs" in model.batching_reason


def test_a_model_that_refuses_guessed_shapes_runs_alone(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.ones((1, 3), np.float32)}
    model = load(tmp_path / "m.onnx", nodes, shape=("n", "k"), weights=weights)
    assert model.batching_reason.startswith("two rows of guessed shapes could not be run: ")


def test_tokens_and_strings_are_probed_too(tmp_path: Path) -> None:
    gather = [helper.make_node("Gather", ["w", "x"], ["y"])]
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    tokens = load(
        tmp_path / "t.onnx", gather, kind=INT64, shape=("n", "length"),
        out=(FLOAT, ("n", "length", 3)), weights=weights,
    )  # fmt: skip
    assert tokens.batching() is not None
    same = [helper.make_node("Identity", ["x"], ["y"])]
    strings = load(tmp_path / "s.onnx", same, kind=STRING, shape=("n", 2), out=(STRING, ("n", 2)))
    assert strings.batching() is not None
