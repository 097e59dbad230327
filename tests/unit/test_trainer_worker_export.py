from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from modelrail_trainer import spec
from modelrail_trainer.failure import ExportFailed, GateFailed
from modelrail_trainer.handover.artifact import ExportCertificate, Signature, TensorSpec
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.worker import data
from modelrail_trainer.worker.export import acceptance, model_file, parity
from modelrail_trainer.worker.export import exporter as export
from modelrail_trainer.worker.learning import loop
from modelrail_trainer.worker.learning.evaluate import evaluate, torch_predict
from modelrail_trainer.worker.training_data import TrainingData

DIGITS = spec.TrainingJobSpec(
    dataset=spec.BundledDataset(name="digits"),
    model=spec.CnnModel(channels=(4, 4), hidden_units=8, dropout=0.5),
    loss=spec.CrossEntropy(),
    optimizer=spec.Adam(learning_rate=0.01),
    epochs=1,
    batch_size=64,
    preprocessing=(spec.Standardize(), spec.MinMaxScale()),
    publication=spec.Publication(model="digits"),
)
LINE = replace(
    DIGITS,
    dataset=spec.LineDataset(slope=0.5, intercept=1.0, points=100),
    model=spec.MlpModel(hidden_units=(4,)),
    loss=spec.MeanSquaredError(),
)
Change = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Trained:
    """A trained network, and the bytes of its honest export."""

    rows: TrainingData
    network: nn.Module
    module: nn.Module
    signature: Signature
    content: bytes

    def check(
        self, path: Path, figures: dict[str, dict[str, float]] | None = None
    ) -> tuple[ExportCertificate, tuple[Metric, ...]]:
        certificate, metrics, _ = acceptance.check(
            path, self.module, self.signature, self.rows, figures or self.figures()
        )
        return certificate, metrics

    def figures(self) -> dict[str, dict[str, float]]:
        predict = torch_predict(self.network)
        return {
            "validation": evaluate(predict, self.rows.validation, self.rows.task),
            "test": evaluate(predict, self.rows.test, self.rows.task),
        }


@pytest.fixture(scope="module", params=[DIGITS, LINE], ids=["digits", "line"])
def trained(request: pytest.FixtureRequest) -> Trained:
    return _train(request.param)


@pytest.fixture(scope="module")
def digits() -> Trained:
    return _train(DIGITS)


def test_an_honest_export_passes(trained: Trained, tmp_path: Path) -> None:
    certificate, metrics = trained.check(_saved(trained.content, tmp_path))
    assert certificate.batch_sizes == (1, 2, 7)
    assert certificate.opset >= 18
    assert certificate.absolute_tolerance == 1e-4
    assert certificate.relative_tolerance == 1e-3
    figures = trained.figures()
    for metric in metrics:
        assert metric.runtime == "onnxruntime"
        assert metric.value == pytest.approx(figures[metric.split][metric.name], rel=1e-3)
    assert {metric.split for metric in metrics} == {"validation", "test"}


def test_the_certificate_holds_the_worst_difference_that_was_measured(
    trained: Trained, tmp_path: Path
) -> None:
    # A network that is off by a little, within the tolerance, and by more for some rows.
    path = _saved(trained.content, tmp_path)
    shifted = _Shifted(trained.module).eval()
    figures = trained.figures()
    certificate, _, _ = acceptance.check(path, shifted, trained.signature, trained.rows, figures)
    rows = trained.rows.validation.inputs[:256]
    assert certificate.rows == len(rows)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: rows})
    with torch.inference_mode():
        expected = _as_tuple(shifted(torch.from_numpy(rows)))
    worst = {
        output.name: float(np.abs(ours - theirs.numpy()).max())
        for output, ours, theirs in zip(trained.signature.outputs, got, expected, strict=True)
    }
    assert {output.name for output in certificate.outputs} == set(worst)
    for output in certificate.outputs:
        assert 5e-5 < output.max_absolute_difference < 1e-4
        # Other batch sizes round differently, in the last bits only.
        assert output.max_absolute_difference == pytest.approx(worst[output.name], rel=0.1)


def test_the_batch_axis_is_dynamic_and_named_on_every_input_and_output(trained: Trained) -> None:
    graph = _model(trained.content).graph
    for tensor in (*graph.input, *graph.output):
        assert tensor.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_drop_out_is_not_exported(digits: Trained) -> None:
    assert "Dropout" not in {node.op_type for node in _model(digits.content).graph.node}


def test_a_network_that_freezes_the_batch_axis_is_refused(digits: Trained) -> None:
    # torch rewrites the wanted axes and exports without an error: only a look at the file tells.
    with pytest.raises(ExportFailed, match="expected a first axis named 'batch', got 3"):
        export.export(_Frozen().eval(), digits.signature, spec.Task.CLASSIFICATION)


def test_a_frozen_output_is_refused_even_when_the_input_is_dynamic(digits: Trained) -> None:
    model = _model(digits.content)
    axis = model.graph.output[1].type.tensor_type.shape.dim[0]
    axis.ClearField("dim_param")
    axis.dim_value = 3
    with pytest.raises(ExportFailed, match=r"output 'probabilities'.*got 3"):
        model_file.check_batch_axis(model)


def test_a_network_that_cannot_be_exported_fails_with_the_exporter_s_reason(
    digits: Trained,
) -> None:
    with pytest.raises(ExportFailed, match=r"the exporter failed: .*data-dependent expression"):
        export.export(_DataDependent().eval(), digits.signature, spec.Task.CLASSIFICATION)


def test_nothing_in_the_file_tells_of_its_source(trained: Trained) -> None:
    for told in (b"stack_trace", b"pkg.torch", b"site-packages", b".py", b"modelrail_trainer"):
        assert told not in trained.content, told
    for place in (Path.cwd(), Path.home(), Path(torch.__file__).parent):
        assert str(place).encode() + b"/" not in trained.content
    assert model_file.leaks(_model(trained.content)) == []


def test_the_exporter_does_tell_its_source_before_it_is_stripped(
    digits: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "strip", lambda _: None)
    model = export.export(digits.module, digits.signature, spec.Task.CLASSIFICATION)
    content = model.SerializeToString()
    assert b"stack_trace" in content
    assert b".py" in content
    assert model_file.leaks(model)


def test_the_metadata_describes_inputs_and_outputs(trained: Trained) -> None:
    entries = {entry.key: entry.value for entry in _model(trained.content).metadata_props}
    assert entries["modelrail.schema_version"] == "1"
    assert entries["modelrail.task"] == trained.rows.task.value
    assert entries["modelrail.dynamic_batch"] == "true"
    (described,) = json.loads(entries["modelrail.input_spec"])
    train = trained.rows.train.inputs
    assert described["name"] == trained.rows.input_name
    assert described["range"] == [float(train.min()), float(train.max())]
    outputs = json.loads(entries["modelrail.output_spec"])
    assert [output["name"] for output in outputs] == [
        output.name for output in trained.signature.outputs
    ]
    for output in outputs:
        assert output.get("labels", []) == list(trained.rows.labels)


def _change_one_weight(model: onnx.ModelProto) -> None:
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = numpy_helper.to_array(weights).copy()
    place = np.unravel_index(np.argmax(np.abs(changed)), changed.shape)
    changed[place] += 0.5
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))


def _make_a_weight_no_number(model: onnx.ModelProto) -> None:
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = numpy_helper.to_array(weights).copy()
    changed.flat[0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))


def _rename_the_output(model: onnx.ModelProto) -> None:
    old = model.graph.output[-1].name
    model.graph.output[-1].name = "answer"
    for node in model.graph.node:
        for position, name in enumerate(node.output):
            if name == old:
                node.output[position] = "answer"


def _swap_the_outputs(model: onnx.ModelProto) -> None:
    first, second = [
        onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in model.graph.output
    ]
    del model.graph.output[:]
    model.graph.output.extend([second, first])


def _rename_the_batch_axis(model: onnx.ModelProto) -> None:
    for tensor in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in tensor.type.tensor_type.shape.dim:
            if axis.dim_param == "batch":
                axis.dim_param = "n"


def _declare_another_width(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11


def _use_an_operator_of_the_runtime(model: onnx.ModelProto) -> None:
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "QuickGelu", "com.microsoft"
    model.opset_import.add(domain="com.microsoft", version=1)


def _import_a_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.example", version=1)


def _tell_a_path(model: onnx.ModelProto) -> None:
    model.graph.node[0].metadata_props.add(key="stack_trace", value="/srv/model.py:3")


def _keep_a_weight_elsewhere(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_change_one_weight, "output 'logits' at batch size 1, ONNX Runtime against PyTorch"),
        (_make_a_weight_no_number, "NaN in different places"),
        (_rename_the_output, "outputs: expected .*'probabilities'.* got .*'answer'"),
        (_swap_the_outputs, "outputs: expected .*'logits'.* got .*"),
        (_rename_the_batch_axis, "inputs: expected .*'batch'.* got .*'n'"),
        (_declare_another_width, r"no valid ONNX: .*\(10\) vs \(11\)"),
        (_use_an_operator_of_the_runtime, r" only, got \['com.microsoft'\]"),
        (_import_a_domain, r" only, got \['com.example'\]"),
        (_tell_a_path, "the file tells of its source"),
        (_keep_a_weight_elsewhere, "expected all weights in the file, got .* in another"),
    ],
)
def test_the_gate_refuses_a_file_that_is_not_the_model(
    digits: Trained, tmp_path: Path, change: Change, reason: str
) -> None:
    model = _model(digits.content)
    change(model)
    assert model.SerializeToString() != digits.content
    with pytest.raises(GateFailed, match=reason):
        digits.check(_saved(model.SerializeToString(), tmp_path))


@pytest.mark.parametrize("kind", ["empty", "text", "half", "garbled"])
def test_the_gate_refuses_bytes_that_are_no_onnx(
    digits: Trained, tmp_path: Path, kind: str
) -> None:
    content = {
        "empty": b"",
        "text": b"I am a model",
        "half": digits.content[: len(digits.content) // 2],
        "garbled": digits.content[:40] + b"\xff" * 64 + digits.content[104:],
    }[kind]
    with pytest.raises(GateFailed, match="the file is no valid ONNX"):
        digits.check(_saved(content, tmp_path))


def test_the_gate_refuses_another_signature(digits: Trained, tmp_path: Path) -> None:
    (model_input,) = digits.signature.inputs
    wider = Signature((replace(model_input, shape=("batch", 9, 9)),), digits.signature.outputs)
    with pytest.raises(GateFailed, match=r"inputs: expected .*9, 9.* got .*8, 8"):
        parity.check_file(_saved(digits.content, tmp_path), wider)


def test_the_gate_refuses_a_network_whose_rows_depend_on_each_other(
    digits: Trained, tmp_path: Path
) -> None:
    # Both runtimes agree on it, but a row in a served batch would depend on strangers.
    module = _Sociable(digits.module).eval()
    model = export.export(module, digits.signature, spec.Task.CLASSIFICATION)
    with pytest.raises(GateFailed, match="at batch size 2 against the same rows alone"):
        replace(digits, module=module).check(_saved(model.SerializeToString(), tmp_path))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_gate_refuses_figures_that_the_file_does_not_reach(
    digits: Trained, tmp_path: Path, split: str
) -> None:
    figures = digits.figures()
    figures[split]["accuracy"] += 0.05
    with pytest.raises(GateFailed, match=f"{split} accuracy: expected .* as with PyTorch"):
        digits.check(_saved(digits.content, tmp_path), figures)


@pytest.mark.parametrize(
    ("got", "expected", "difference"),
    [
        ([1.0], [1.0], 0.0),
        ([0.0], [1e-4], 1e-4),
        ([1000.0], [1000.9], 0.9),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0),
    ],
)
def test_close_numbers_are_equal(
    got: list[float], expected: list[float], difference: float
) -> None:
    found = parity.compare(_floats(got), _floats(expected), "y")
    assert found == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ([2.1e-4], [0.0]),
        ([1000.0], [1001.2]),
        ([np.nan], [0.0]),
        ([0.0], [np.nan]),
        ([np.inf], [1.0]),
        ([1.0], [np.inf]),
        ([-np.inf], [np.inf]),
        ([1.0, 2.0], [1.0]),
    ],
)
def test_distant_numbers_are_not(got: list[float], expected: list[float]) -> None:
    with pytest.raises(GateFailed, match="y: "):
        parity.compare(_floats(got), _floats(expected), "y")


def test_the_signature_names_labels_and_ranges(digits: Trained) -> None:
    (image,) = digits.signature.inputs
    assert (image.name, image.datatype, image.shape) == ("image", "FP32", ("batch", 8, 8))
    assert image.value_range is not None
    assert (image.value_range.minimum, image.value_range.maximum) == (0.0, 16.0)
    assert [output.name for output in digits.signature.outputs] == ["logits", "probabilities"]
    for output in digits.signature.outputs:
        assert output.shape == ("batch", 10)
        assert output.labels == tuple("0123456789")
    assert TensorSpec(name="y", datatype="FP32", shape=("batch", 1)).value_range is None


class _Frozen(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = x.reshape(3, -1)[:, :10]
        return logits, logits.softmax(dim=-1)


class _DataDependent(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = x.flatten(1)[:, :10] if x.sum() > 0 else x.flatten(1)[:, 10:20]
        return logits, logits.softmax(dim=-1)


class _Sociable(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, _ = self.module(x)
        logits = logits - logits.mean(dim=0, keepdim=True)
        return logits, logits.softmax(dim=-1)


class _Shifted(nn.Module):
    """Off by up to 9e-5, and by another amount in each row."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        offset = 9e-5 * x.flatten(1).sum(dim=1, keepdim=True).sin()
        return tuple(output + offset for output in _as_tuple(self.module(x)))


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _train(job: spec.TrainingJobSpec) -> Trained:
    rows = data.load(job)
    network = loop.fit(job, rows, lambda _: None).network
    signature = export.signature_of(rows)
    module = export.exported_module(network, rows.task)
    model = export.export(module, signature, rows.task)
    return Trained(rows, network, module, signature, model.SerializeToString())


def _saved(content: bytes, directory: Path) -> Path:
    path = directory / "model.onnx"
    path.write_bytes(content)
    return path


def _model(content: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(content)


def _floats(values: list[float]) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)
