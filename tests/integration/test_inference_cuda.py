"""Recorded runs compute what plain ones do; on a GPU, graphs and memory limits do what they say.

The recordings' memory, numbers and locks are the same on the CPU, which ignores the numbers; what
the GPU does with them is tested where there is one.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper

from modelrail_inference.model.batching import DynamicBatching, PaddedInput, Padding
from modelrail_inference.model.definition import (
    LoadedModel,
    LoadError,
    ModelSettings,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import CudaSettings, SessionSettings
from modelrail_inference.model.signature import DYNAMIC, Signature, TensorSpec
from modelrail_inference.protocol.config.model_config import read_settings
from modelrail_inference.protocol.convert import config_to_pb
from modelrail_inference.runtime import loader as loader_module
from modelrail_inference.runtime import session as session_module
from modelrail_inference.runtime.cuda import (
    PLACEMENT_ENTRY,
    CudaGraphs,
    GraphError,
    graph_shapes,
    operators_by_provider,
    provider_chain,
)
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.provider import loads
from modelrail_inference.runtime.session import OutOfMemory, Run, RunTerminatedError
from modelrail_inference.scheduling.admission import QueueLimits
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.scheduler import Scheduler

FLOAT = TensorProto.FLOAT
SIGNATURE = Signature(
    inputs=(TensorSpec("x", "FP32", (DYNAMIC, 4)),),
    outputs=(TensorSpec("y", "FP32", (DYNAMIC, 4)), TensorSpec("z", "FP32", (DYNAMIC, 4))),
)
needs_gpu = pytest.mark.skipif(not loads(Provider.CUDA), reason="CUDA does not load here")


def model(nodes: list[Any] | None = None) -> bytes:
    """y = x + x and z = exp(x) for rows of 4, or what else `nodes` say."""
    nodes = nodes or [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Exp", ["x"], ["z"]),
    ]
    values = [helper.make_tensor_value_info(name, FLOAT, ["n", 4]) for name in "xyz"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    opset = [helper.make_opsetid("", 18)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return content


def on_cpu(content: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(PLACEMENT_ENTRY, "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def rows(count: int, value: float) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.full((count, 4), value, np.float32)}


def recorded(session: Any, *sizes: int) -> CudaGraphs:
    graphs = CudaGraphs(session, device="cpu")
    for size in sizes:
        graphs.record({"x": (size, 4)}, SIGNATURE)
    return graphs


def test_replays_of_each_size_compute_their_own_inputs() -> None:
    graphs = recorded(on_cpu(model()), 1, 3)
    for count, value in ((1, 2.0), (3, 5.0), (1, 7.0), (3, -1.0)):
        y, z = graphs.run(rows(count, value), ["y", "z"], onnxruntime.RunOptions())
        assert y.shape == z.shape == (count, 4)
        assert np.all(y == 2 * value)
        assert np.allclose(z, np.exp(value))


def test_a_reply_is_not_changed_by_the_next_replay() -> None:
    graphs = recorded(on_cpu(model()), 2)
    (first,) = graphs.run(rows(2, 1.0), ["y"], onnxruntime.RunOptions())
    graphs.run(rows(2, 9.0), ["y"], onnxruntime.RunOptions())
    assert np.all(first == 2.0)


def test_outputs_come_in_the_order_in_which_they_were_asked_for() -> None:
    graphs = recorded(on_cpu(model()), 2)
    z, y = graphs.run(rows(2, 0.0), ["z", "y"], onnxruntime.RunOptions())
    assert np.all(z == 1.0)
    assert np.all(y == 0.0)


def test_sizes_without_a_recording_run_plainly() -> None:
    graphs = recorded(on_cpu(model()), 2)
    (y,) = graphs.run(rows(5, 3.0), ["y"], onnxruntime.RunOptions())
    assert y.shape == (5, 4)
    assert np.all(y == 6.0)


def test_threads_that_replay_at_once_get_their_own_answers() -> None:
    graphs = recorded(on_cpu(model()), 1, 2)
    wrong: list[float] = []

    def ask(value: float) -> None:
        for turn in range(200):
            (y,) = graphs.run(rows(1 + turn % 2, value), ["y"], onnxruntime.RunOptions())
            if not np.all(y == 2 * value):
                wrong.append(value)

    threads = [threading.Thread(target=ask, args=(float(value),)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_run_that_was_stopped_while_it_waited_is_not_replayed() -> None:
    graphs = recorded(on_cpu(model()), 1)
    options = onnxruntime.RunOptions()
    options.terminate = True
    with pytest.raises(RuntimeError, match="stopped"):
        graphs.run(rows(1, 1.0), ["y"], options)


def test_a_model_that_draws_at_random_is_not_recorded() -> None:
    with pytest.raises(GraphError, match="output 'y' of a replay differs"):
        recorded(on_cpu(model(RANDOM)), 2)


def test_operators_are_counted_by_the_provider_that_took_them() -> None:
    assert operators_by_provider(on_cpu(model())) == {"CPUExecutionProvider": 2}


def shapes_of(
    signature: Signature, buckets: tuple[int, ...], padding: Padding | None = None
) -> list[dict[str, tuple[int, ...]]]:
    return [dict(one) for one in graph_shapes(signature, buckets, padding, batched=True)]


def test_every_batch_bucket_is_recorded() -> None:
    assert shapes_of(SIGNATURE, (1, 4)) == [{"x": (1, 4)}, {"x": (4, 4)}]


def test_every_length_of_padded_inputs_is_recorded_with_its_mask() -> None:
    signature = Signature(
        inputs=(
            TensorSpec("ids", "INT64", (DYNAMIC, DYNAMIC)),
            TensorSpec("mask", "INT64", (DYNAMIC, DYNAMIC)),
        ),
        outputs=(TensorSpec("y", "FP32", (DYNAMIC, 4)),),
    )
    padding = Padding(edges=(8, 16), inputs={"ids": PaddedInput(axis=1)}, mask="mask")
    assert shapes_of(signature, (2,), padding) == [
        {"ids": (2, 8), "mask": (2, 8)},
        {"ids": (2, 16), "mask": (2, 16)},
    ]


def test_a_model_without_batches_is_recorded_once() -> None:
    signature = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),))
    assert graph_shapes(signature, (), None, batched=False) == [{"x": (3,)}]


@pytest.mark.parametrize(
    ("inputs", "buckets", "named"),
    [
        ((TensorSpec("x", "FP32", (DYNAMIC, 4)),), (), "expected the parameter batch_buckets"),
        ((TensorSpec("x", "FP32", (DYNAMIC, DYNAMIC)),), (1,), r"'x' has shape \[-1, -1\]"),
        ((TensorSpec("x", "BYTES", (DYNAMIC, 4)),), (1,), "'x' is BYTES"),
        ((TensorSpec("x", "FP32", (DYNAMIC, 4)),), tuple(range(1, 66)), "at most 64 shapes"),
    ],
)
def test_shapes_without_an_end_are_refused(
    inputs: tuple[TensorSpec, ...], buckets: tuple[int, ...], named: str
) -> None:
    with pytest.raises(GraphError, match=named):
        shapes_of(Signature(inputs, SIGNATURE.outputs), buckets)


def load(path: Path, content: bytes, settings: ModelSettings) -> Any:
    path.write_bytes(content)
    loader = SessionLoader(Provider.CUDA, 1, 64, 60.0)
    return loader.load(VersionDefinition("m", 1, path, "1", settings))


def with_graphs(*buckets: int) -> ModelSettings:
    return ModelSettings(
        max_batch_size=buckets[-1],
        batch_buckets=buckets,
        session=SessionSettings(cuda=CudaSettings(records_graphs=True)),
    )


@pytest.fixture
def _cpu_for_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU take what would go to the GPU; all else is as it is there."""
    monkeypatch.setattr(loader_module, "resolve", lambda provider: provider)
    monkeypatch.setattr(
        session_module, "provider_chain", lambda *_: provider_chain(Provider.CPU, None)
    )
    monkeypatch.setattr(session_module, "why_idle", lambda *_: "")
    monkeypatch.setattr(
        session_module, "CudaGraphs", lambda session, device_id: CudaGraphs(session, device="cpu")
    )


@pytest.mark.usefixtures("_cpu_for_gpu")
def test_a_loaded_model_replays_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tmp_path / "m.onnx", model(), with_graphs(1, 4))
    bound: list[object] = []
    native = loaded.session._session
    run = native.run_with_iobinding

    def watched(binding: object, options: object) -> None:
        bound.append(binding)
        run(binding, options)

    monkeypatch.setattr(native, "run_with_iobinding", watched)
    for count, value in ((1, 2.0), (4, 3.0), (1, 0.5), (3, 1.0)):
        (y,) = loaded.session.run(rows(count, value), ["y"], Run())
        assert np.all(y == 2 * value)
    assert len(bound) == 3  # of three items there is no recording
    assert len(set(map(id, bound))) == 2
    stopped = Run()
    stopped.terminate()
    with pytest.raises(RunTerminatedError):
        loaded.session.run(rows(1, 1.0), ["y"], stopped)


@pytest.mark.usefixtures("_cpu_for_gpu")
def test_a_model_that_cannot_be_recorded_is_not_served(tmp_path: Path) -> None:
    settings = ModelSettings(
        max_batch_size=4, session=SessionSettings(cuda=CudaSettings(records_graphs=True))
    )
    with pytest.raises(LoadError, match=r"optimization.cuda.graphs: expected .* batch_buckets"):
        load(tmp_path / "m.onnx", model(), settings)


@pytest.mark.usefixtures("_cpu_for_gpu")
def test_the_recordings_of_an_unloaded_model_are_freed_at_once(tmp_path: Path) -> None:
    loaded = load(tmp_path / "m.onnx", model(), with_graphs(1, 4))
    graphs = weakref.ref(loaded.session._graphs)
    assert graphs() is not None
    loaded.close()
    assert graphs() is None


RANDOM = [
    helper.make_node("RandomNormalLike", ["x"], ["y"]),
    helper.make_node("Exp", ["x"], ["z"]),
]


@pytest.fixture
def _dear_changes(monkeypatch: pytest.MonkeyPatch, _cpu_for_gpu: None) -> None:
    """Has another batch size than the last cost 70 ms, as far as the loader can tell."""
    monkeypatch.setattr(loader_module, "change_seconds", lambda *_: 0.07)


@pytest.fixture
def _no_graphs(monkeypatch: pytest.MonkeyPatch, _dear_changes: None) -> None:
    """Has the GPU refuse to record anything."""

    class Refusing(CudaGraphs):
        def record(self, *_: Any) -> None:
            raise RuntimeError("graph capture is not supported")

    monkeypatch.setattr(
        session_module, "CudaGraphs", lambda session, device_id: Refusing(session, device="cpu")
    )


@pytest.mark.usefixtures("_dear_changes")
def test_where_a_change_of_the_batch_size_is_dear_few_sizes_are_recorded(tmp_path: Path) -> None:
    loaded = load(tmp_path / "m.onnx", model(), ModelSettings())
    assert loaded.settings.batch_buckets == (1, 2, 4, 8, 16, 32, 64)
    assert loaded.batching() is not None
    config = config_to_pb(loaded, instances=1).config
    assert config.optimization.cuda.graphs
    assert config.parameters["batch_buckets"].string_value == "[1, 2, 4, 8, 16, 32, 64]"
    for count in (1, 4, 64):
        (y,) = loaded.session.run(rows(count, 2.0), ["y"], Run())
        assert np.all(y == 4.0)
    # What the reply says can be used as a configuration, and asks for the same.
    (tmp_path / "config.pbtxt").write_text(text_format.MessageToString(config))
    again = load(tmp_path / "m.onnx", model(), read_settings(tmp_path / "config.pbtxt", "m"))
    assert again.settings.batch_buckets == loaded.settings.batch_buckets
    assert again.settings.session.cuda == loaded.settings.session.cuda


@pytest.mark.usefixtures("_no_graphs")
@pytest.mark.parametrize(
    "batching", [None, DynamicBatching(preserve_ordering=True, max_queue_delay_seconds=0.1)]
)
def test_where_it_is_dear_and_nothing_can_be_recorded_requests_run_alone(
    tmp_path: Path, batching: DynamicBatching | None
) -> None:
    settings = ModelSettings(max_batch_size=4 if batching else None, batching=batching)
    loaded = load(tmp_path / "m.onnx", model(), settings)
    lane = Lane(loaded, instances=1, budget=LoopBudget())
    assert lane.queue.max_rows == 1
    assert lane.queue.delay_seconds == 0.0
    assert (lane.ordering is not None) is (batching is not None)
    assert "another size than the last takes 70 ms more" in loaded.batching_reason
    assert "graph capture is not supported" in loaded.batching_reason
    assert loaded.settings == settings
    shown = config_to_pb(loaded, instances=1).config
    assert shown.parameters["batching_off"].string_value == loaded.batching_reason
    assert shown.HasField("dynamic_batching") is (batching is not None)
    (z,) = loaded.session.run(rows(3, 0.0), ["z"], Run())
    assert np.all(z == 1.0)


MIXED = [
    helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
    helper.make_node("Sub", ["x", "mean"], ["y"]),
    helper.make_node("Exp", ["x"], ["z"]),
]


@pytest.mark.usefixtures("_dear_changes")
@pytest.mark.parametrize("max_batch_size", [None, 8])
def test_nothing_is_recorded_of_a_model_whose_rows_may_not_be_filled_up(
    tmp_path: Path, max_batch_size: int | None
) -> None:
    nodes = [
        helper.make_node("Constant", [], ["axis"], value=numpy_helper.from_array(np.array([0]))),
        *MIXED,
    ]
    settings = ModelSettings(max_batch_size=max_batch_size)
    loaded = load(tmp_path / "m.onnx", model(nodes), settings)
    assert loaded.settings == settings
    assert loaded.rows_together() == 1


@pytest.mark.usefixtures("_dear_changes")
def test_nothing_is_recorded_where_items_have_sizes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelSettings(max_batch_size=4, batching=DynamicBatching())
    monkeypatch.setattr(loader_module, "has_fixed_items", lambda *_: False)
    loaded = load(tmp_path / "m.onnx", model(), settings)
    assert loaded.settings == settings
    assert loaded.rows_together() == 4


async def test_recorded_runs_have_one_thread_at_a_time(tmp_path: Path) -> None:
    limits = QueueLimits(max_items=9, max_bytes=9, max_model_items=9, max_model_bytes=9)
    scheduler = Scheduler(threads=4, limits=limits)
    plain = LoadedModel("m", 1, SIGNATURE, 4, Provider.CUDA, None)
    assert scheduler.instances_of(plain) == 4
    recorded = dataclasses.replace(plain, settings=with_graphs(1, 4))
    assert scheduler.instances_of(recorded) == 1
    scheduler.close()


@pytest.mark.usefixtures("_dear_changes")
@pytest.mark.parametrize(
    "settings",
    [ModelSettings(max_batch_size=4, batch_buckets=(4,)), ModelSettings(max_batch_size=1)],
)
def test_a_model_with_one_batch_size_stays_as_it_is(
    tmp_path: Path, settings: ModelSettings
) -> None:
    loaded = load(tmp_path / "m.onnx", model(), settings)
    assert loaded.settings == settings
    assert not loaded.batching_reason


def convolutions() -> bytes:
    """Four convolutions one after the other, of images of 32 x 32 with 16 channels."""
    random = np.random.default_rng(0)
    names = ["x", "a", "b", "c", "y"]
    weights = [
        numpy_helper.from_array(random.normal(0, 0.08, (16, 16, 3, 3)).astype(np.float32), f"w{i}")
        for i in range(4)
    ]
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[1, 1, 1, 1])
        for i in range(4)
    ]
    values = [helper.make_tensor_value_info(n, FLOAT, ["n", 16, 32, 32]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializer=weights)
    opset = [helper.make_opsetid("", 18)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return content


@pytest.mark.gpu
@needs_gpu
def test_convolutions_are_recorded_on_the_gpu_and_compute_what_the_cpu_does(
    tmp_path: Path,
) -> None:
    settings = ModelSettings(max_batch_size=6, batching=DynamicBatching())
    loaded = load(tmp_path / "m.onnx", convolutions(), settings)
    assert loaded.settings.batch_buckets == (1, 2, 4, 6)
    assert loaded.batching() == settings.batching
    random = np.random.default_rng(1)
    plain = on_cpu(convolutions())
    for count in (1, 6, 2, 1, 4, 3):
        inputs = {"x": random.normal(size=(count, 16, 32, 32)).astype(np.float32)}
        (expected,) = plain.run(["y"], inputs)
        (found,) = loaded.session.run(inputs, ["y"], Run())
        # A GPU multiplies in TF32.
        assert np.allclose(found, expected, rtol=1e-2, atol=2e-2)


@pytest.mark.gpu
@needs_gpu
def test_graphs_on_the_gpu_compute_what_the_cpu_does(tmp_path: Path) -> None:
    loaded = load(tmp_path / "m.onnx", model(), with_graphs(1, 4))
    for count, value in ((1, 2.0), (4, 3.0), (1, 0.5), (3, 1.0), (4, -2.0)):
        y, z = loaded.session.run(rows(count, value), ["y", "z"], Run())
        assert np.all(y == 2 * value)
        assert np.allclose(z, np.exp(value), rtol=1e-3)
    stopped = Run()
    stopped.terminate()
    with pytest.raises(RunTerminatedError):
        loaded.session.run(rows(1, 1.0), ["y"], stopped)


@pytest.mark.gpu
@needs_gpu
def test_a_model_that_needs_the_cpu_is_not_recorded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Acosh", ["x"], ["z"]),
    ]
    with pytest.raises(LoadError, match="graph capture"):
        load(tmp_path / "m.onnx", model(nodes), with_graphs(4))


@pytest.mark.gpu
@needs_gpu
def test_too_little_memory_on_the_gpu_fails_one_run_and_no_more(tmp_path: Path) -> None:
    settings = ModelSettings(
        max_batch_size=1 << 20,
        session=SessionSettings(cuda=CudaSettings(memory_limit_bytes=8 << 20)),
    )
    loaded = load(tmp_path / "m.onnx", model(), settings)
    with pytest.raises(OutOfMemory):
        loaded.session.run(rows(1 << 20, 1.0), ["y", "z"], Run())
    (y,) = loaded.session.run(rows(1, 1.0), ["y"], Run())
    assert np.all(y == 2.0)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    settings = ModelSettings(session=SessionSettings(cuda=CudaSettings(device=99)))
    with pytest.raises(LoadError):
        load(tmp_path / "m.onnx", model(), settings)


@pytest.mark.gpu
@pytest.mark.skipif(not loads(Provider.TENSORRT), reason="TensorRT does not load here")
def test_tensorrt_runs_the_model_and_says_so(tmp_path: Path) -> None:
    loaded = load(tmp_path / "m.onnx", model(), ModelSettings(provider=Provider.TENSORRT))
    assert loaded.provider is Provider.TENSORRT
    (y,) = loaded.session.run(rows(2, 1.0), ["y"], Run())
    assert np.all(y == 2.0)
