"""How many threads share an operator: what somebody chose, or a plan that tiny models cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelrail_inference.model.batching import PaddedInput, Padding
from modelrail_inference.model.definition import ModelSettings, VersionDefinition
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import SessionSettings
from modelrail_inference.model.warmup import Fill, SampleInput, WarmupSample
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.session import Session

PLANNED = 2


def threads_of(
    folder: Path,
    *,
    width: int,
    plans_threads: bool = True,
    settings: ModelSettings | None = None,
    max_batch_size: int = 64,
) -> int:
    """Loads y = x · w with a square w, and returns the threads of its session."""
    weights = numpy_helper.from_array(np.ones((width, width), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    save(folder, node, ["n", width], [weights])
    loader = SessionLoader(Provider.CPU, PLANNED, max_batch_size, 60.0, plans_threads=plans_threads)
    return threads_by(loader, folder, settings or ModelSettings())


def save(folder: Path, node: Any, shape: list[int | str], weights: list[Any]) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")


def threads_by(loader: SessionLoader, folder: Path, settings: ModelSettings) -> int:
    loaded = loader.load(VersionDefinition("m", 1, folder / "model.onnx", "1", settings))
    session: Any = loaded.session
    assert isinstance(session, Session)
    return int(session._session.get_session_options().intra_op_num_threads)


def test_a_tiny_model_gets_one_thread(tmp_path: Path) -> None:
    assert threads_of(tmp_path, width=4) == 1


def filters(folder: Path, settings: ModelSettings | None = None) -> int:
    """Loads a filter of pictures of any size, and returns the threads of its session."""
    weights = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    save(folder, node, ["n", 1, "height", "width"], [weights])
    loader = SessionLoader(Provider.CPU, PLANNED, 1, 60.0, plans_threads=True)
    return threads_by(loader, folder, settings or ModelSettings())


def sample_of(*dims: int) -> ModelSettings:
    sample = WarmupSample("s", 1, 1, {"x": SampleInput("FP32", dims, Fill.RANDOM)})
    return ModelSettings(max_batch_size=1, warmup=(sample,))


def test_a_model_of_which_nobody_knows_how_large_its_pictures_are_is_not_called_tiny(
    tmp_path: Path,
) -> None:
    assert filters(tmp_path) == PLANNED


def test_a_warm_up_sample_shows_how_large_pictures_are(tmp_path: Path) -> None:
    assert filters(tmp_path, sample_of(1, 8, 8)) == 1
    assert filters(tmp_path, sample_of(1, 2048, 2048)) == PLANNED


def test_with_padding_the_longest_edge_shows_whether_a_model_is_tiny(tmp_path: Path) -> None:
    save(tmp_path, helper.make_node("Exp", ["x"], ["y"]), ["n", "length"], [])
    loader = SessionLoader(Provider.CPU, PLANNED, 1, 60.0, plans_threads=True)

    def threads(*edges: int) -> int:
        padding = Padding(edges, {"x": PaddedInput(1)})
        return threads_by(loader, tmp_path, ModelSettings(max_batch_size=1, padding=padding))

    assert threads(4, 16) == 1
    assert threads(4, 1 << 22) == PLANNED


def test_a_model_whose_largest_batch_takes_long_is_not_tiny(tmp_path: Path) -> None:
    assert threads_of(tmp_path, width=256) == 1
    assert threads_of(tmp_path, width=256, max_batch_size=4096) == PLANNED


def test_a_model_whose_largest_batch_is_too_large_to_look_at_is_not_called_tiny(
    tmp_path: Path,
) -> None:
    assert threads_of(tmp_path, width=4, max_batch_size=1 << 40) == PLANNED


def test_a_larger_model_gets_the_threads_that_were_planned(tmp_path: Path) -> None:
    assert threads_of(tmp_path, width=4096) == PLANNED


@pytest.mark.parametrize(
    ("plans_threads", "chosen"), [(False, 0), (True, 2)], ids=["operator", "configuration"]
)
def test_threads_that_somebody_chose_are_kept(
    tmp_path: Path, plans_threads: bool, chosen: int
) -> None:
    settings = ModelSettings(session=SessionSettings(intra_op_threads=chosen))
    kept = threads_of(tmp_path, width=4, plans_threads=plans_threads, settings=settings)
    assert kept == PLANNED
