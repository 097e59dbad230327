"""Ways of exporting, tried until one passes the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from modelrail_trainer import spec
from modelrail_trainer.failure import ExportFailed, GateFailed
from modelrail_trainer.handover.artifact import ExportAttempt, Signature
from modelrail_trainer.worker import data
from modelrail_trainer.worker.export import ladder
from modelrail_trainer.worker.export.acceptance import edge_rows
from modelrail_trainer.worker.export.exporter import export, exported_module, signature_of
from modelrail_trainer.worker.export.ladder import Proven, export_and_prove
from modelrail_trainer.worker.learning.evaluate import evaluate, torch_predict
from modelrail_trainer.worker.training_data import EndToEnd, RawRows, TrainingData
from modelrail_trainer.zoo.networks.perceptron import perceptron

JOB = spec.TrainingJobSpec(
    dataset=spec.BundledDataset(name="digits"),
    model=spec.LinearModel(),
    loss=spec.CrossEntropy(),
    optimizer=spec.Adam(),
    epochs=1,
    publication=spec.Publication(model="digits"),
)
NAMES = [rung.name for rung in ladder.RUNGS]
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    return data.load(JOB)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return perceptron([64, 10]).eval()


class Climber:
    """Exports a module, and remembers what was logged."""

    def __init__(self, rows: TrainingData, network: nn.Module, directory: Path) -> None:
        self.rows = rows
        self.network = network
        self.directory = directory
        self.path = directory / "model.onnx"
        self.lines: list[str] = []

    def __call__(self, module: nn.Module | None = None) -> Proven:
        predict = torch_predict(self.network)
        figures = {
            "validation": evaluate(predict, self.rows.validation, self.rows.task),
            "test": evaluate(predict, self.rows.test, self.rows.task),
        }
        module = exported_module(module or self.network, self.rows.task)
        signature = signature_of(self.rows)
        return export_and_prove(
            module, signature, self.rows, figures, directory=self.directory, log=self.lines.append
        )


@pytest.fixture
def climb(digits: TrainingData, network: nn.Module, tmp_path: Path) -> Climber:
    return Climber(digits, network, tmp_path)


def change_exports(
    monkeypatch: pytest.MonkeyPatch, change: Change, *, when: Callable[[nn.Module, bool], bool]
) -> None:
    """Has the exporter make another graph in some cases."""

    def changed(
        module: nn.Module, signature: Signature, task: spec.Task, *, optimize: bool
    ) -> onnx.ModelProto:
        model = export(module, signature, task, optimize=optimize)
        if when(module, optimize):
            change(model)
        return model

    monkeypatch.setattr(ladder, "export", changed)


def another_weight(model: onnx.ModelProto) -> None:
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = numpy_helper.to_array(weights) + np.float32(0.5)
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))


def test_an_honest_export_passes_on_the_first_rung(climb: Climber) -> None:
    proven = climb()
    assert proven.certificate.attempts == (ExportAttempt("optimized"),)
    assert proven.certificate.tools["torch"] == torch.__version__
    assert set(proven.certificate.tools) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert climb.lines == []


def test_wrong_numbers_of_the_optimizer_are_left_behind_and_told(
    climb: Climber, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_exports(monkeypatch, another_weight, when=lambda _, optimize: optimize)
    proven = climb()
    first, second = proven.certificate.attempts
    assert (first.method, second) == ("optimized", ExportAttempt("not optimized"))
    assert "ONNX Runtime against PyTorch" in first.failure
    assert climb.lines == [f"export, optimized: {first.failure}"]
    assert list(proven.signatures) == ["model.onnx"]
    onnxruntime.InferenceSession(climb.path)


def test_weights_get_other_names_when_their_own_do_harm(
    climb: Climber, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_exports(monkeypatch, another_weight, when=lambda m, _: not isinstance(m, ladder.Renamed))
    proven = climb()
    assert [attempt.method for attempt in proven.certificate.attempts] == NAMES[:3]
    names = {tensor.name for tensor in onnx.load(climb.path).graph.initializer}
    assert any(name.startswith("modelrail_exported.") for name in names)


class OneRow(nn.Module):
    """Takes one row at a time, as networks do that were written for one."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...] = (1, 8, 8)) -> None:
        super().__init__()
        self.network = network
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(x.reshape(self.shape))
        return outputs


def test_a_network_for_one_row_is_published_as_one_and_says_so(
    climb: Climber, network: nn.Module
) -> None:
    proven = climb(OneRow(network))
    assert [attempt.method for attempt in proven.certificate.attempts] == NAMES
    assert all(attempt.failure for attempt in proven.certificate.attempts[:-1])
    assert proven.certificate.batch_sizes == (1,)
    signature = proven.signatures["model.onnx"]
    (model_input,), outputs = signature.inputs, signature.outputs
    assert model_input.shape == (1, 8, 8)
    assert {output.shape for output in outputs} == {(1, 10)}
    assert climb.lines[-1] == "the exported model answers one row at a time, and cannot be batched"
    session = onnxruntime.InferenceSession(climb.path)
    assert session.get_inputs()[0].shape == [1, 8, 8]
    assert session.get_modelmeta().custom_metadata_map["modelrail.dynamic_batch"] == "false"
    assert {(metric.split, metric.name) for metric in proven.metrics} >= {
        ("test", "accuracy"),
        ("validation", "loss"),
    }


@pytest.fixture
def climb_table(tmp_path: Path) -> Climber:
    """Exports a network behind a table's columns, which are a number and a word."""
    lines = [f"{n / 7},{('up', 'down', '')[n % 3]},{('yes', 'no')[n % 2]}" for n in range(90)]
    (tmp_path / "rows.csv").write_text("\n".join(["size,way,answer", *lines]) + "\n")
    table = spec.TableDataset(
        paths=(str(tmp_path / "rows.csv"),),
        target="answer",
        columns=(
            spec.TableColumn(name="size", encoding=spec.NumberEncoding()),
            spec.TableColumn(name="way", encoding=spec.CategoryEncoding()),
        ),
    )
    rows = data.load(spec.with_defaults(replace(JOB, dataset=table)), tmp_path / "data")
    torch.manual_seed(0)
    return Climber(rows, perceptron([rows.train.inputs.shape[1], 2]).eval(), tmp_path)


def test_a_table_s_network_for_one_row_is_published_with_its_columns(
    climb_table: Climber,
) -> None:
    features = climb_table.rows.train.inputs.shape[1]
    proven = climb_table(OneRow(climb_table.network, (1, features)))
    assert [attempt.method for attempt in proven.certificate.attempts] == NAMES
    whole, bare = proven.signatures["model.onnx"], proven.signatures["bare.onnx"]
    assert [(i.name, i.shape) for i in whole.inputs] == [("size", (1, 1)), ("way", (1, 1))]
    assert {output.shape[0] for output in (*whole.outputs, *bare.outputs)} == {1}
    assert proven.reference.keys() == {"model.onnx", "bare.onnx"}
    session = onnxruntime.InferenceSession(climb_table.path)
    assert session.get_modelmeta().custom_metadata_map["modelrail.dynamic_batch"] == "false"
    sent = {"size": np.array([[2.5]], np.float32), "way": np.array([["down"]], object)}
    (label,) = session.run(["label"], sent)
    assert label.tolist() in ([["yes"]], [["no"]])


class WrongOnce:
    """Raw values whose first graph does not pass the gate."""

    def __init__(self, raw: RawRows) -> None:
        self.raw = raw
        self.failures = ["label: another"]

    def remarks(self) -> Iterator[str]:
        return self.raw.remarks()

    def export(
        self, bare: onnx.ModelProto, signature: Signature, module: nn.Module, path: Path
    ) -> EndToEnd:
        whole = self.raw.export(bare, signature, module, path)
        if self.failures:
            raise GateFailed(self.failures.pop())
        return whole


def test_a_graph_from_raw_values_that_is_wrong_is_left_behind_too(climb_table: Climber) -> None:
    raw = climb_table.rows.raw
    assert raw is not None
    climb_table.rows = replace(climb_table.rows, raw=WrongOnce(raw))
    proven = climb_table()
    assert proven.certificate.attempts == (
        ExportAttempt("optimized", "label: another"),
        ExportAttempt("not optimized"),
    )
    assert climb_table.path.exists()


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] if x.sum() > 0 else x.flatten(1)[:, 10:20]


def test_a_network_that_no_way_exports_fails_with_all_reasons_and_leaves_no_file(
    climb: Climber,
) -> None:
    with pytest.raises(ExportFailed) as raised:
        climb(DataDependent())
    assert all(f"{name}: the exporter failed" in str(raised.value) for name in NAMES)
    assert not climb.path.exists()


def test_the_exporter_s_report_is_logged_without_its_own_frames(climb: Climber) -> None:
    with pytest.raises(ExportFailed):
        climb(DataDependent())
    report = "\n".join(line for line in climb.lines if line.startswith("exporter: "))
    assert "exporter: ❌ Obtain model graph with `torch.export.export(..., strict=False)`" in report
    assert 'File "test_trainer_worker_ladder.py", line' in report  # where the module is at fault
    assert "Use `torch.cond`" in report
    assert "_capture_strategies.py" not in report
    assert "x.flatten(1)" not in report
    assert str(Path(__file__).parent) not in report
    assert not [path for path in climb.directory.iterdir() if path.is_dir()]


def test_numbers_that_are_wrong_on_every_rung_fail_at_the_gate(
    climb: Climber, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_exports(monkeypatch, another_weight, when=lambda *_: True)
    with pytest.raises(GateFailed) as raised:
        climb()
    assert all(f"{name}: " in str(raised.value) for name in NAMES)
    assert not climb.path.exists()
    assert not [line for line in climb.lines if line.startswith("exporter: ")]


def clip_to_what_validation_has(model: onnx.ModelProto) -> None:
    """Leaves every real row alone: pixels go from 0 to 16."""
    (graph_input,) = model.graph.input
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == graph_input.name:
                node.input[position] = "clipped"
    bounds = {"least": 0.0, "most": 16.0}
    for name, value in bounds.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    clip: Any = helper.make_node("Clip", [graph_input.name, *bounds], ["clipped"])
    model.graph.node.insert(0, clip)


def test_values_beyond_those_of_validation_are_compared_too(
    climb: Climber, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_exports(monkeypatch, clip_to_what_validation_has, when=lambda _, optimize: optimize)
    first, *_ = climb().certificate.attempts
    assert "ONNX Runtime against PyTorch" in first.failure


@pytest.mark.parametrize(
    ("dtype", "largest"), [(np.float32, 50.0), (np.int64, 5), (np.uint8, 5)], ids=str
)
def test_edge_rows_are_zeros_and_large_values(dtype: Any, largest: float) -> None:
    rows = np.array([[1, 5], [2, 3]], dtype)
    edges = edge_rows(rows)
    assert edges.dtype == dtype
    assert edges.tolist() == [[0, 0], [largest, largest]]
