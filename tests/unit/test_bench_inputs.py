"""Requests from metadata: shapes, random values, and recordings in perf_analyzer's format."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelrail.bench import BenchPlan, PlanError
from modelrail.bench.inputs.pool import make_payloads
from modelrail.bench.server.target import InputSpec, Target
from modelrail.client import Connection
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.tensor import NUMPY_TYPES, from_raw


def plan(**fields: Any) -> BenchPlan:
    return BenchPlan(connection=Connection(address="unix:nowhere"), model="m", **fields)


def target(*inputs: InputSpec, max_batch_size: int | None = 8, **fields: Any) -> Target:
    return Target(server="", inputs=inputs, max_batch_size=max_batch_size, **fields)


def requests(plan: BenchPlan, target: Target) -> list[pb.ModelInferRequest]:
    return [
        pb.ModelInferRequest.FromString(payload.body) for payload in make_payloads(plan, target)
    ]


def tensors(request: pb.ModelInferRequest) -> dict[str, Any]:
    return {
        tensor.name: from_raw(raw, tensor.datatype, list(tensor.shape))
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


@pytest.mark.parametrize("datatype", sorted(NUMPY_TYPES))
def test_random_inputs_have_the_datatype_and_shape_of_the_model(datatype: str) -> None:
    made = requests(plan(batch_size=4), target(InputSpec("x", datatype, (-1, 3, 5))))
    values = tensors(made[0])["x"]
    assert values.shape == (4, 3, 5)
    assert len(made) > 1
    assert made[0] != made[1]
    if datatype == "BYTES":
        assert all(len(text) == 16 for text in values.flat)
    else:
        numbers = values.astype(np.float64)
        assert 0 <= numbers.min() < numbers.max() <= 1


def test_a_seed_repeats_the_inputs_and_another_does_not() -> None:
    model = target(InputSpec("x", "FP32", (-1, 3)))
    assert make_payloads(plan(seed=1), model) == make_payloads(plan(seed=1), model)
    assert make_payloads(plan(seed=1), model)[0] != make_payloads(plan(seed=2), model)[0]


def test_ranges_bound_the_numbers() -> None:
    model = target(InputSpec("ids", "INT64", (-1, 400)), InputSpec("x", "FP32", (-1, 400)))
    values = tensors(requests(plan(ranges={"ids": (10, 12), "x": (-2.0, -1.0)}), model)[0])
    assert set(values["ids"].flat) == {10, 11, 12}
    assert -2 <= values["x"].min() < values["x"].max() <= -1


@pytest.mark.parametrize("datatype", sorted(NUMPY_TYPES.keys() - {"BYTES", "BOOL"}))
def test_every_datatype_takes_the_range_that_it_holds(datatype: str) -> None:
    dtype = NUMPY_TYPES[datatype]
    if dtype is np.dtype(np.float64):
        low, high = -1e307, 1e307  # of a width that is finite too
    elif dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    else:
        # numpy itself knows no BF16, which spans almost as much as FP32.
        limits = np.finfo(dtype if dtype.kind == "f" else np.float32)
        low, high = float(limits.min), float(limits.max)
    model = target(InputSpec("x", datatype, (-1, 400)))
    values = tensors(requests(plan(ranges={"x": (low, high)}), model)[0])["x"]
    assert np.isfinite(values.astype(np.float64)).all()
    assert len(set(values.flat)) > 100


def test_open_sizes_come_from_the_plan_without_the_batch_axis() -> None:
    model = target(InputSpec("x", "FP32", (-1, -1, 3)))
    (first, *_) = requests(plan(shapes={"x": (7, 3)}, batch_size=2), model)
    assert list(first.inputs[0].shape) == [2, 7, 3]


@pytest.mark.parametrize(
    ("max_batch_size", "batch_size", "shape", "items"),
    [
        (8, None, [1, 3], 1),
        (8, 8, [8, 3], 8),
        (None, 5, [5, 3], 5),  # a server without ModelConfig: the leading -1 is the batch axis
        (0, 5, [5, 3], 5),  # a model whose batch axis the server does not use
    ],
)
def test_the_batch_axis_is_found_from_what_the_server_says(
    max_batch_size: int | None, batch_size: int | None, shape: list[int], items: int
) -> None:
    model = target(InputSpec("x", "FP32", (-1, 3)), max_batch_size=max_batch_size)
    payloads = make_payloads(plan(batch_size=batch_size), model)
    request = pb.ModelInferRequest.FromString(payloads[0].body)
    assert (list(request.inputs[0].shape), payloads[0].items) == (shape, items)


X = InputSpec("x", "FP32", (-1, 3))


@pytest.mark.parametrize(
    ("fields", "model", "message"),
    [
        ({"batch_size": 9}, target(X), "batch_size: m takes at most 8, got 9"),
        (
            {"batch_size": 2},
            target(InputSpec("x", "FP32", (3,)), max_batch_size=0),
            "batch_size: m has no batch axis (inputs: x [3]), got 2",
        ),
        ({"shapes": {"y": (1,)}}, target(X), "shapes: expected an input of m (x), got y"),
        ({"shapes": {"x": (4,)}}, target(X), "shapes: x: expected sizes that fit [3]"),
        ({}, target(InputSpec("x", "FP32", (-1, -1))), "shapes: expected x:N with a number"),
        ({}, target(InputSpec("x", "FP8", (-1, 3))), "datatype FP8"),
        (
            {"ranges": {"x": (0.0, 300.0)}},
            target(InputSpec("x", "UINT8", (-1, 3))),
            "ranges: x: expected whole numbers from 0 to 255 for UINT8, got 0,300",
        ),
        (
            {"ranges": {"x": (0.0, 3.0)}},
            target(InputSpec("x", "BYTES", (-1, 3))),
            "ranges: x: expected an input of numbers, got BYTES",
        ),
        (
            {"ranges": {"x": (0.0, 1e5)}},
            target(InputSpec("x", "FP16", (-1, 3))),
            "ranges: x: expected numbers from -65504 to 65504 for FP16, got 0,100000",
        ),
        (
            {"ranges": {"x": (-1e300, 1.0)}},
            target(X),
            "ranges: x: expected numbers from -3.40282e+38 to 3.40282e+38 for FP32, got -1e+300,1",
        ),
        (
            {"ranges": {"x": (0.0, 1e39)}},
            target(InputSpec("x", "BF16", (-1, 3))),
            "ranges: x: expected numbers from -3.40282e+38 to 3.40282e+38 for BF16, got 0,1e+39",
        ),
        (
            {"ranges": {"x": (0, 2**63)}},
            target(InputSpec("x", "INT64", (-1, 3))),
            "to 9223372036854775807 for INT64, got 0,9223372036854775808",
        ),
        (
            {"batch_size": 10**12},
            target(X, max_batch_size=None),
            "expected inputs of less than 2147483648 bytes, got 12000000000000",
        ),
        (
            {"shapes": {"x": (10**9,)}},
            target(InputSpec("x", "BYTES", (-1, -1))),
            "expected inputs of less than 2147483648 bytes, got 20000000000",
        ),
        ({}, target(X, is_decoupled=True), "streaming: expected for m"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_refused(
    fields: dict[str, Any], model: Target, message: str
) -> None:
    with pytest.raises(PlanError) as refused:
        make_payloads(plan(**fields), model)
    assert message in str(refused.value)


def recorded(folder: Path, data: Any) -> Path:
    path = folder / "inputs.json"
    path.write_text(json.dumps(data))
    return path


def test_every_form_of_a_recording_is_read(tmp_path: Path) -> None:
    raw = base64.b64encode(np.array([1, 2], dtype=np.float32).tobytes()).decode()
    path = recorded(
        tmp_path,
        {
            "data": [
                {"x": [1, 2], "s": ["a"]},
                {"x": {"content": [[1, 2]], "shape": [2]}, "s": {"content": ["a"]}},
                [{"x": {"b64": raw}, "s": ["a"]}, {"x": [1.0, 2.0], "s": ["a"]}],
                {"x": {"content": {"b64": raw}, "shape": [2]}, "s": {"b64": "AQAAAGE="}},
            ],
            "validation_data": [{}],
        },
    )
    model = target(InputSpec("x", "FP32", (-1, 2)), InputSpec("s", "BYTES", (-1, 1)))
    made = requests(plan(recording=path), model)
    assert len(made) == 5
    for request in made:
        assert tensors(request)["x"].tolist() == [[1.0, 2.0]]
        assert tensors(request)["s"].tolist() == [[b"a"]]


def test_a_batch_takes_consecutive_entries_round_the_file(tmp_path: Path) -> None:
    path = recorded(tmp_path, {"data": [{"x": [n]} for n in range(3)]})
    model = target(InputSpec("x", "INT32", (-1, 1)))
    made = requests(plan(recording=path, batch_size=2), model)
    assert [tensors(request)["x"].ravel().tolist() for request in made] == [[0, 1], [2, 0], [1, 2]]


def test_a_recording_brings_the_sizes_that_the_model_leaves_open(tmp_path: Path) -> None:
    path = recorded(
        tmp_path,
        {
            "data": [
                {"x": {"content": [1, 2, 3], "shape": [3]}},
                {"x": {"content": [], "shape": [0]}},
            ]
        },
    )
    made = requests(plan(recording=path), target(InputSpec("x", "FP32", (-1, -1))))
    assert [list(request.inputs[0].shape) for request in made] == [[1, 3], [1, 0]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], '{"data"'),
        ({"data": []}, '{"data"'),
        ({"data": [1]}, "data[0]: expected an object of inputs, got 1"),
        ({"data": [{"y": [1]}]}, "data[0]: expected the input x, got y"),
        ({"data": [{"x": [1, 2, 3], "z": [1]}]}, "expected the inputs x, got also z"),
        ({"data": [{"x": [1, 2]}]}, "data[0].x: expected 3 values for the shape [3], got 2"),
        ({"data": [{"x": 7}]}, "data[0].x: expected a list, or b64 or content, got 7"),
        ({"data": [{"x": ["a", "b", "c"]}]}, "data[0].x: could not convert"),
        ({"data": [{"x": [1, 2, 1e39]}]}, "data[0].x: expected FP32 values, got [1, 2, 1e+39]"),
        ({"data": [{"x": [1, 2, None]}]}, "data[0].x: expected FP32 values, got [1, 2, None]"),
        ({"data": [{"x": {"b64": "AAAA"}}]}, "data[0].x: byte size mismatch"),
        ({"data": [{"x": {"b64": "?"}}]}, "data[0].x: "),
        (
            {"data": [{"x": {"content": [1], "shape": [1]}}]},
            "data[0].x: expected a shape that fits [3] (-1: any size), got [1]",
        ),
    ],
)
def test_a_recording_that_does_not_fit_is_refused_with_its_place(
    tmp_path: Path, data: Any, message: str
) -> None:
    with pytest.raises(PlanError) as refused:
        make_payloads(plan(recording=recorded(tmp_path, data)), target(X))
    assert message in str(refused.value)


def test_other_faults_of_a_recording_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No such file"):
        make_payloads(plan(recording=tmp_path / "none.json"), target(X))
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(PlanError, match="expected JSON"):
        make_payloads(plan(recording=bad), target(X))
    bad.write_text("[" * 100_000)
    with pytest.raises(PlanError, match="expected JSON"):
        make_payloads(plan(recording=bad), target(X))
    path = recorded(tmp_path, {"data": [{"x": [1]}, {"x": [2.5]}]})
    with pytest.raises(PlanError, match=r"data\[1\].x: expected INT32 values"):
        make_payloads(plan(recording=path), target(InputSpec("x", "INT32", (-1, 1))))
    lengths = recorded(
        tmp_path, {"data": [{"x": {"content": [1] * n, "shape": [n]}} for n in (1, 2)]}
    )
    with pytest.raises(PlanError, match="one shape for all items of a batch"):
        make_payloads(
            plan(recording=lengths, batch_size=2), target(InputSpec("x", "INT32", (-1, -1)))
        )


def test_a_decoupled_model_is_asked_for_the_end_of_every_answer() -> None:
    made = requests(plan(streaming=True), target(X, is_decoupled=True))
    assert made[0].parameters["triton_enable_empty_final_response"].bool_param
