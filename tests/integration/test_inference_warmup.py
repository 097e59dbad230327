"""Sample requests of a configuration run before a version is ready, or the version is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from modelrail.tensor import to_raw
from modelrail_inference.model.definition import (
    LoadedModel,
    LoadError,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.protocol.config.model_config import read_settings
from modelrail_inference.protocol.convert import config_to_pb
from modelrail_inference.runtime.first_runs import warmup as warmup_module
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.session import OutOfMemory, Run, RunTerminatedError, Session

SAMPLE = """
    model_warmup {
      name: "two" batch_size: 2 count: 3
      inputs { key: "x" value { data_type: TYPE_FP32 dims: [3] zero_data: true } }
    }
"""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, NDArray[Any]]]:
    """Returns the inputs of every run, in their order."""
    seen: list[dict[str, NDArray[Any]]] = []
    run = Session.run

    def recording(
        self: Session, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], handle: Run
    ) -> list[NDArray[Any]]:
        seen.append(dict(inputs))
        return run(self, inputs, outputs, handle)

    monkeypatch.setattr(Session, "run", recording)
    return seen


def load(folder: Path, config: str, *, kind: int = TensorProto.FLOAT) -> LoadedModel:
    """Loads y = x of shape [n, 3] with a configuration."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 3])],
        [helper.make_tensor_value_info("y", kind, ["n", 3])],
    )
    return load_graph(folder, graph, config)


def load_graph(folder: Path, graph: Any, config: str) -> LoadedModel:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    (folder / "config.pbtxt").write_text(config)
    settings = read_settings(folder / "config.pbtxt", "m")
    loader = SessionLoader(Provider.CPU, 1, 64, 60.0)
    return loader.load(VersionDefinition("m", 1, folder / "model.onnx", "1", settings))


def test_a_sample_runs_as_often_as_it_says_and_nothing_else_does(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]]
) -> None:
    load(tmp_path, "max_batch_size: 4" + SAMPLE)
    assert [run["x"].tolist() for run in runs] == [[[0.0] * 3] * 2] * 3


def test_a_file_holds_the_elements_of_one_item(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]]
) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "x.bin").write_bytes(to_raw(np.array(["a", "ž", ""], object), "BYTES"))
    config = SAMPLE.replace("zero_data: true", "input_data_file: 'x.bin'").replace("FP32", "STRING")
    load(tmp_path, "max_batch_size: 4" + config, kind=TensorProto.STRING)
    assert runs[0]["x"].tolist() == [["a", "ž", ""]] * 2


def test_random_elements_differ(tmp_path: Path, runs: list[dict[str, NDArray[Any]]]) -> None:
    load(tmp_path, "max_batch_size: 4" + SAMPLE.replace("zero_data", "random_data"))
    assert len(set(runs[0]["x"].ravel().tolist())) > 1


def test_without_samples_the_smallest_zeros_run_once(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]]
) -> None:
    load(tmp_path, "max_batch_size: 4")
    assert [run["x"].shape for run in runs] == [(1, 3)]


def test_without_samples_each_batch_bucket_runs_once(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]]
) -> None:
    buckets = 'parameters { key: "batch_buckets" value { string_value: "[1, 2, 8]" } }'
    load(tmp_path, "max_batch_size: 8 " + buckets)
    assert [run["x"].shape for run in runs] == [(1, 3), (2, 3), (8, 3)]


BUCKETS = 'parameters { key: "batch_buckets" value { string_value: "[1, 4, 8]" } }'
PADDED = """
    max_batch_size: 8
    parameters { key: "padding" value { string_value:
      '{"edges": [16, 32], "inputs": {"x": {"axis": 1, "value": 7}}, "mask": "mask"}' } }
"""


def load_masked(folder: Path, config: str) -> LoadedModel:
    """Loads y = x · mask, both of shape [n, length], with a configuration."""
    names = ("x", "mask", "y")
    x, mask, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "length"]) for name in names
    )
    node = helper.make_node("Mul", ["x", "mask"], ["y"])
    return load_graph(folder, helper.make_graph([node], "g", [x, mask], [y]), config)


def test_a_sample_runs_in_the_sizes_in_which_requests_like_it_will(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]]
) -> None:
    sample = SAMPLE.replace("batch_size: 2", "batch_size: 3").replace("dims: [3]", "dims: [20]")
    load_masked(tmp_path, PADDED + BUCKETS + sample)
    assert [run["x"].shape for run in runs] == [(4, 32)] * 3
    assert runs[0]["x"].tolist() == [[0.0] * 20 + [7.0] * 12] * 4
    assert runs[0]["mask"].tolist() == [[1.0] * 20 + [0.0] * 12] * 4


def test_a_sample_of_text_is_filled_up_to_its_bucket(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]]
) -> None:
    config = "max_batch_size: 8 " + BUCKETS + SAMPLE.replace("FP32", "STRING")
    load(tmp_path, config.replace("zero_data", "random_data"), kind=TensorProto.STRING)
    assert runs[0]["x"].tolist() == [["a"] * 3] * 4


def test_a_sample_that_is_longer_than_all_edges_fails_the_load(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="sample 'two': expected a length of at most 32, got 33"):
        load_masked(tmp_path, PADDED + SAMPLE.replace("dims: [3]", "dims: [33]"))


def test_without_samples_each_bucket_runs_in_each_length(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]]
) -> None:
    load_masked(tmp_path, PADDED + BUCKETS)
    shapes = [(1, 16), (4, 16), (8, 16), (1, 32), (4, 32), (8, 32)]
    assert [run["x"].shape for run in runs] == shapes
    assert [run["mask"].shape for run in runs] == shapes


def test_without_samples_no_more_sizes_run_than_a_version_can_wait_for(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup_module, "_MOST_SIZES", 4)
    load_masked(tmp_path, PADDED + BUCKETS)
    assert [run["x"].shape for run in runs] == [(1, 16), (4, 16), (8, 16), (1, 32)]


def test_a_trial_has_no_time_for_more_than_the_first_size(
    tmp_path: Path, runs: list[dict[str, NDArray[Any]]]
) -> None:
    class Here:
        """Tries in this process, and notes what ran."""

        def check(self, loader: SessionLoader, definition: VersionDefinition, **_: Any) -> None:
            loader.load(definition)
            shapes.extend(run["x"].shape for run in runs)

    shapes: list[tuple[int, ...]] = []
    loaded = load_masked(tmp_path, PADDED + BUCKETS)
    runs.clear()
    trials: Any = Here()
    loader = SessionLoader(Provider.CPU, 1, 64, 60.0, trials=trials)
    path = tmp_path / "model.onnx"
    loader.load(VersionDefinition("m", 1, path, "1", loaded.settings, vouched=False))
    assert shapes == [(1, 16)]
    assert len(runs) == 1 + 6


@pytest.mark.parametrize("error", [OutOfMemory("too little"), RunTerminatedError()])
def test_sizes_that_find_no_time_or_memory_cost_a_model_nothing_but_their_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = Session.run

    def failing(
        self: Session, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], handle: Run
    ) -> list[NDArray[Any]]:
        if len(inputs["x"]) > largest:
            raise error
        return run(self, inputs, outputs, handle)

    monkeypatch.setattr(Session, "run", failing)
    largest = 4
    assert load_masked(tmp_path, PADDED + BUCKETS).session is not None
    largest = 0
    with pytest.raises(TransientLoadError):
        load_masked(tmp_path, PADDED + BUCKETS)


def test_the_configuration_shows_samples_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "x.bin").write_bytes(bytes(12))
    config = (
        "max_batch_size: 4 instance_group { count: 2 }"
        + SAMPLE
        + SAMPLE.replace("zero_data: true", "input_data_file: 'x.bin'")
    )
    shown = config_to_pb(load(tmp_path, config), instances=2).config
    assert [(s.name, s.batch_size, s.count) for s in shown.model_warmup] == [("two", 2, 3)] * 2
    assert shown.model_warmup[0].inputs["x"].zero_data
    assert shown.model_warmup[1].inputs["x"].input_data_file == "x.bin"
    assert list(shown.model_warmup[1].inputs["x"].dims) == [3]
    assert shown.instance_group[0].count == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"two"', '""', r"model_warmup\[0\].name"),
        ("batch_size: 2", "batch_size: 5", r"batch_size: expected at most 4, got 5"),
        ("count: 3", "count: 1001", r"count: expected at most 1000, got 1001"),
        ("[3]", "[-1]", r"inputs\['x'\].dims: expected sizes of at least 0"),
        ("[3]", "[1000000, 1000000]", r"dims: expected at most \d+ bytes"),
        ("zero_data: true", "input_data_file: '../x'", r"a plain file name, got '../x'"),
        ("zero_data: true", "", r"inputs\['x'\]: expected zero_data, random_data or"),
        ("zero_data: true", "zero_data: false", r"expected zero_data, random_data or"),
        ("zero_data: true", "input_data_file: 'no'", r"sample 'two': input 'x': 'warmup/no' is no"),
        ("zero_data: true", "input_data_file: 's'", r"sample 'two'.*warmup/s.*Expected 12, got 11"),
        ("FP32", "FP64", r"sample 'two': input 'x': expected FP32, got FP64"),
        ("[3]", "[4]", r"sample 'two': input 'x': expected shape \[-1, 3\], got \[2, 4\]"),
        ('"x"', '"z"', r"sample 'two': expected the inputs \['x'\], got \['z'\]"),
    ],
)
def test_a_sample_that_does_not_fit_fails_the_load_and_is_named(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "s").write_bytes(bytes(11))
    with pytest.raises(LoadError, match=message) as failed:
        load(tmp_path, "max_batch_size: 4" + SAMPLE.replace(before, after))
    assert str(tmp_path) not in str(failed.value)


def test_a_sample_that_the_model_refuses_fails_the_load(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
        [numpy_helper.from_array(np.array([2, -1], np.int64), "shape")],
    )
    load_graph(tmp_path, graph, SAMPLE.replace("batch_size: 2", "").replace("[3]", "[4]"))
    with pytest.raises(LoadError, match="the warm-up sample 'two' failed: "):
        load_graph(tmp_path, graph, SAMPLE.replace("batch_size: 2", ""))
