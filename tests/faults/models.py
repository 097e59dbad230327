"""Small models whose right answers are known, and the requests for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.tensor import datatype_of, from_raw, to_raw

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
BATCHED = "max_batch_size: 32 dynamic_batching { max_queue_delay_microseconds: 2000 }"
TABLE_ROWS = 10
WIDTH = 1 << 20


def save(
    folder: Path,
    config: str,
    nodes: list[Any],
    *,
    inputs: dict[str, tuple[int, list[Any]]],
    output: tuple[int, list[Any]],
    weights: dict[str, NDArray[Any]] | None = None,
) -> None:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info("y", *output)],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    onnx.save(model, folder / "1" / "model.onnx")


def doubling(folder: Path, factor: float = 2.0) -> None:
    """y = factor · x, row by row."""
    save(
        folder, BATCHED, [helper.make_node("Mul", ["x", "c"], ["y"])],
        inputs={"x": (FLOAT, ["n", 4])}, output=(FLOAT, ["n", 4]),
        weights={"c": np.array([factor], np.float32)},
    )  # fmt: skip


def table(folder: Path) -> None:
    """y = row x of a table; an index outside of it fails the whole run."""
    rows = np.arange(TABLE_ROWS * 3, dtype=np.float32).reshape(TABLE_ROWS, 3)
    save(
        folder, BATCHED, [helper.make_node("Gather", ["w", "x"], ["y"])],
        inputs={"x": (INT64, ["n", 1])}, output=(FLOAT, ["n", 1, 3]), weights={"w": rows},
    )  # fmt: skip


def text(folder: Path) -> None:
    """y = x for strings."""
    save(
        folder, BATCHED, [helper.make_node("Identity", ["x"], ["y"])],
        inputs={"x": (STRING, ["n", 1])}, output=(STRING, ["n", 1]),
    )  # fmt: skip


def wide(folder: Path) -> None:
    """y = x a million times, row by row: answers of 4 MB to requests of some bytes."""
    save(
        folder, "max_batch_size: 4", [helper.make_node("Expand", ["x", "shape"], ["y"])],
        inputs={"x": (FLOAT, ["n", 1])}, output=(FLOAT, ["n", WIDTH]),
        weights={"shape": np.array([1, WIDTH], np.int64)},
    )  # fmt: skip


def counting_step() -> onnx.GraphProto:
    """The body of a loop that adds one in each step."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "one"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", FLOAT, [1]),
        ],
        initializer=[helper.make_tensor("one", FLOAT, [1], [1.0])],
    )


def counting(folder: Path) -> None:
    """Counts to the number given, one loop step after the other: as slow as the caller wants."""
    save(
        folder, "max_batch_size: 0",
        [helper.make_node("Loop", ["x", "yes", "z"], ["y"], body=counting_step())],
        inputs={"x": (INT64, [])}, output=(FLOAT, [1]),
        weights={"yes": np.array(True), "z": np.zeros(1, np.float32)},
    )  # fmt: skip


def request_for(model: str, x: NDArray[Any]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype=datatype_of(x), shape=x.shape)
    request.raw_input_contents.append(to_raw(x, datatype_of(x)))
    return request


def output(response: pb.ModelInferResponse) -> Any:
    tensor = response.outputs[0]
    return from_raw(response.raw_output_contents[0], tensor.datatype, tensor.shape).tolist()


def echo(folder: Path) -> None:
    """y = x for numbers of any bits, without a batch dimension: any size, none included."""
    save(
        folder, "max_batch_size: 0", [helper.make_node("Identity", ["x"], ["y"])],
        inputs={"x": (FLOAT, ["n", "m"])}, output=(FLOAT, ["n", "m"]),
    )  # fmt: skip


def scalar(folder: Path) -> None:
    """y = x for one number without any dimension."""
    save(
        folder, "max_batch_size: 0", [helper.make_node("Identity", ["x"], ["y"])],
        inputs={"x": (FLOAT, [])}, output=(FLOAT, []),
    )  # fmt: skip


def stuck(folder: Path) -> None:
    """A loop of as many steps as there are, whatever comes in: its first run never ends."""
    counting(folder)
    file = folder / "1" / "model.onnx"
    model = onnx.load(file)
    loop = model.graph.node[0]
    loop.input[0] = "steps"
    model.graph.initializer.append(helper.make_tensor("steps", INT64, [], [2**62]))
    onnx.save(model, file)
