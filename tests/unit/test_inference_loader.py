"""How a model is loaded: never twice at a time, as the second might not find the memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from modelrail_inference.model.definition import (
    LoadedModel,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.runtime import loader as loader_module
from modelrail_inference.runtime import session as session_module
from modelrail_inference.runtime.cuda import CudaGraphs, provider_chain
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.session import Session, SessionOptions


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """y = relu(x) for rows of 4."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def alive_before(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns, of each session that is made, how many others there are in that moment."""
    sessions: list[weakref.ref[Session]] = []
    counts: list[int] = []

    class Counted(Session):
        def __init__(self, path: Path, options: SessionOptions) -> None:
            counts.append(sum(session() is not None for session in sessions))
            sessions.append(weakref.ref(self))
            super().__init__(path, options)

    monkeypatch.setattr(loader_module, "Session", Counted)
    return counts


@pytest.fixture
def _gpu_that_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU play a GPU where another batch size is dear and nothing can be recorded."""

    class Refusing(CudaGraphs):
        def record(self, *_: Any) -> None:
            raise RuntimeError("graph capture is not supported")

    on_cpu = provider_chain(Provider.CPU, None)
    monkeypatch.setattr(loader_module, "resolve", lambda provider: provider)
    monkeypatch.setattr(loader_module, "change_seconds", lambda *_: 0.07)
    monkeypatch.setattr(session_module, "provider_chain", lambda *_: on_cpu)
    monkeypatch.setattr(session_module, "why_idle", lambda *_: "")
    monkeypatch.setattr(
        session_module, "CudaGraphs", lambda session, device_id: Refusing(session, device="cpu")
    )


def load(path: Path, loader: SessionLoader) -> LoadedModel:
    return loader.load(VersionDefinition("m", 1, path, "1"))


def test_a_tiny_model_is_freed_before_it_is_loaded_with_one_thread(
    path: Path, alive_before: list[int]
) -> None:
    load(path, SessionLoader(Provider.CPU, 2, 64, 60.0, plans_threads=True))
    assert alive_before == [0, 0]


@pytest.mark.usefixtures("_gpu_that_records_nothing")
def test_a_model_that_cannot_be_recorded_is_freed_before_it_is_loaded_plainly(
    path: Path, alive_before: list[int]
) -> None:
    loaded = load(path, SessionLoader(Provider.CUDA, 1, 64, 60.0))
    assert "graph capture is not supported" in loaded.batching_reason
    assert alive_before == [0, 0, 0]


def test_what_a_provider_takes_nothing_of_is_freed_before_the_cpu_gets_it(
    path: Path, alive_before: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = provider_chain(Provider.CPU, None)
    monkeypatch.setattr(loader_module, "resolve", lambda _: Provider.CUDA)
    monkeypatch.setattr(session_module, "provider_chain", lambda *_: on_cpu)
    loaded = load(path, SessionLoader(Provider.AUTO, 1, 64, 60.0))
    assert loaded.provider is Provider.CPU
    assert alive_before == [0, 0]
