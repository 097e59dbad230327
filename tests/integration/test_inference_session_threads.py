"""How many threads share an operator: what somebody chose, or a plan that tiny models cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelrail_inference.repository.definition import ModelSettings, VersionDefinition
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.provider import Provider
from modelrail_inference.runtime.session import Session
from modelrail_inference.runtime.session_settings import SessionSettings

PLANNED = 2


def threads_of(
    folder: Path, *, width: int, plans_threads: bool = True, chosen: int | None = None
) -> int:
    """Loads y = x · w with a square w, and returns the threads of its session."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(np.ones((width, width), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    loader = SessionLoader(Provider.CPU, PLANNED, 64, 60.0, plans_threads=plans_threads)
    settings = ModelSettings()
    if chosen is not None:
        settings = ModelSettings(session=SessionSettings(intra_op_threads=chosen))
    loaded = loader.load(VersionDefinition("m", 1, folder / "model.onnx", "1", settings))
    session: Any = loaded.session
    assert isinstance(session, Session)
    return int(session._session.get_session_options().intra_op_num_threads)


def test_a_tiny_model_gets_one_thread(tmp_path: Path) -> None:
    assert threads_of(tmp_path, width=4) == 1


def test_a_larger_model_gets_the_threads_that_were_planned(tmp_path: Path) -> None:
    assert threads_of(tmp_path, width=4096) == PLANNED


@pytest.mark.parametrize(
    ("plans_threads", "chosen"), [(False, None), (True, 2)], ids=["operator", "configuration"]
)
def test_threads_that_somebody_chose_are_kept(
    tmp_path: Path, plans_threads: bool, chosen: int | None
) -> None:
    assert threads_of(tmp_path, width=4, plans_threads=plans_threads, chosen=chosen) == PLANNED
