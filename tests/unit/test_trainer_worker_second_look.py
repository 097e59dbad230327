"""A second look at a job's files: what is not as it says is refused, and told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from modelrail_trainer.failure import GateFailed
from modelrail_trainer.handover.artifact import OutputParity, Signature, TensorSpec, load_result
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.export import reference
from modelrail_trainer.worker.export.model_file import describe
from modelrail_trainer.worker.export.reference import (
    ReferenceCase,
    Values,
    load_reference,
    save_reference,
)
from modelrail_trainer.worker.export.second_look import look_again
from tests.handed_over import (
    ROWS,
    SIGNATURE,
    Forgery,
    HandedOver,
    a_path_in_the_graph,
    another_graph,
    another_reference,
    claims,
    smaller_differences,
)


def forged(directory: Path, *forgeries: Forgery) -> None:
    handed_over = HandedOver.honest()
    for forge in forgeries:
        forge(handed_over)
    handed_over.write(directory)


def refused(directory: Path) -> str:
    with pytest.raises(GateFailed) as caught:
        look_again(load_result(directory), directory)
    return str(caught.value)


def test_an_honest_result_is_what_it_says(tmp_path: Path) -> None:
    result = HandedOver.honest().write(tmp_path)
    verdict = look_again(load_result(tmp_path), tmp_path)
    assert [(file.path, file.sha256) for file in verdict.files] == [
        (file.path, file.sha256) for file in result.files
    ]
    assert verdict.outputs == (OutputParity("y", 0.0),)
    assert verdict.rows == len(ROWS)


def test_the_worst_difference_is_measured_and_not_believed(tmp_path: Path) -> None:
    forged(tmp_path, smaller_differences, claims(outputs=(OutputParity("y", 0.5),)))
    (output,) = look_again(load_result(tmp_path), tmp_path).outputs
    assert output.max_absolute_difference == pytest.approx(0.009, rel=0.01)


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    forged(tmp_path, another_graph)
    said = refused(tmp_path)
    assert "model.onnx: output 'y' at batch size 1, against the reference: expected 18" in said
    assert said.endswith("at [9, 0], got 27")


def test_a_reference_that_nobody_would_get_is_refused(tmp_path: Path) -> None:
    forged(tmp_path, another_reference)
    assert "expected 15 within 0.015 at [7, 0], got 14" in refused(tmp_path)


def test_a_certificate_that_claims_smaller_differences_is_refused(tmp_path: Path) -> None:
    forged(tmp_path, smaller_differences)
    assert "says that output 'y' differs by 0 at most, got 0.009" in refused(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"opset": 19}, "opset of the certificate: expected 20, got 19"),
        ({"absolute_tolerance": 1e-9}, "tolerances of the certificate: expected (0.0001, 0.001)"),
        ({"batch_sizes": (1, 2, 1024)}, "batch sizes of the certificate: expected (1, 2, 7)"),
        ({"rows": 10**9}, "rows of the certificate: expected from 8 to 256, got 1000000000"),
        ({"rows": 0}, "rows of the certificate: expected from 8 to 256, got 0"),
        ({"outputs": ()}, "outputs of the certificate: expected ['y'], got []"),
    ],
)
def test_a_certificate_that_says_something_else_is_refused(
    tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    forged(tmp_path, claims(**fields))
    assert said in refused(tmp_path)


def test_a_path_in_the_graph_is_refused(tmp_path: Path) -> None:
    forged(tmp_path, a_path_in_the_graph)
    assert "model.onnx: the file tells of its source" in refused(tmp_path)


def test_a_path_under_a_name_of_ours_is_refused_too(tmp_path: Path) -> None:
    def forge(handed_over: HandedOver) -> None:
        handed_over.model.metadata_props.add(key="modelrail.note", value="/home/secret/path.py")

    forged(tmp_path, forge)
    assert "got others in ['modelrail.note']" in refused(tmp_path)


def test_metadata_of_another_signature_is_refused(tmp_path: Path) -> None:
    def forge(handed_over: HandedOver) -> None:
        del handed_over.model.metadata_props[:]
        (x,), (y,) = SIGNATURE.inputs, SIGNATURE.outputs
        describe(
            handed_over.model, Signature((x,), (replace(y, meaning="euros"),)), Task.REGRESSION
        )

    forged(tmp_path, forge)
    assert "got others in ['modelrail.output_spec'" in refused(tmp_path)


def test_another_signature_is_refused(tmp_path: Path) -> None:
    def forge(handed_over: HandedOver) -> None:
        (x,) = SIGNATURE.inputs
        handed_over.signature = Signature((replace(x, datatype="FP64"),), SIGNATURE.outputs)

    forged(tmp_path, forge)
    assert "inputs: expected [('x', 'FP64', ('batch', 1))]" in refused(tmp_path)


def with_batches_of(size: int) -> Forgery:
    """Returns what fixes the batch axis of graph and signature alike."""

    def forge(handed_over: HandedOver) -> None:
        handed_over.signature = Signature(
            *(
                tuple(replace(tensor, shape=(size, 1)) for tensor in tensors)
                for tensors in (SIGNATURE.inputs, SIGNATURE.outputs)
            )
        )
        model = handed_over.model
        for tensor in (*model.graph.input, *model.graph.output):
            axis = tensor.type.tensor_type.shape.dim[0]
            axis.ClearField("dim_param")
            axis.dim_value = size
        del model.metadata_props[:]
        describe(model, handed_over.signature, Task.REGRESSION)

    return forge


def test_a_frozen_batch_axis_is_refused_whatever_the_signature_says(tmp_path: Path) -> None:
    forged(tmp_path, with_batches_of(5), claims(batch_sizes=(5,)))
    assert "expected 'batch' or 1 as the first axis of all inputs and outputs" in refused(tmp_path)


def test_a_graph_that_answers_one_row_at_a_time_says_so_and_passes(tmp_path: Path) -> None:
    forged(tmp_path, with_batches_of(1), claims(batch_sizes=(1,)))
    assert look_again(load_result(tmp_path), tmp_path).rows == len(ROWS)


def language(nodes: list[NodeProto], logits: Values) -> Forgery:
    """Returns what hands over a graph that answers at each place of [batch, length] bytes."""
    places = ("batch", "length")
    tokens = TensorSpec(name="x", datatype="UINT8", shape=places)
    scores = TensorSpec(name="logits", datatype="FP32", shape=(*places, 1))

    def forge(handed_over: HandedOver) -> None:
        handed_over.signature = Signature((tokens,), (scores,))
        graph = helper.make_graph(
            nodes,
            "language",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, [*places])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*places, 1])],
            [numpy_helper.from_array(np.array([number], np.int64), name)
             for name, number in (("first", 1), ("last", 2))],
        )  # fmt: skip
        handed_over.model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        )
        describe(handed_over.model, handed_over.signature, Task.LANGUAGE)
        handed_over.case = ReferenceCase({"x": BYTES}, {"logits": logits})

    return forge


BYTES = np.arange(40, dtype=np.uint8).reshape(4, 10)
AS_NUMBERS = [
    helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
    helper.make_node("Unsqueeze", ["numbers", "last"], ["places"]),  # [batch, length, 1]
]


def test_a_language_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    numbers = BYTES.astype(np.float32)[:, :, None]
    outputs = claims(outputs=(OutputParity("logits", 0.0),), rows=4)
    causal = [*AS_NUMBERS, helper.make_node("Identity", ["places"], ["logits"])]
    forged(tmp_path, language(causal, numbers), outputs)
    assert look_again(load_result(tmp_path), tmp_path).rows == len(BYTES)
    ahead = [
        *AS_NUMBERS,
        helper.make_node("ReduceMax", ["places", "first"], ["largest"]),
        helper.make_node("Add", ["places", "largest"], ["logits"]),
    ]
    largest = numbers + numbers.max(axis=1, keepdims=True)
    forged(tmp_path, language(ahead, largest), outputs)
    assert "output 'logits' before place 1, with other bytes from there on" in refused(tmp_path)


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    def forge(handed_over: HandedOver) -> None:
        (factor,) = handed_over.model.graph.initializer
        factor.ClearField("raw_data")
        factor.data_location = TensorProto.EXTERNAL
        factor.external_data.add(key="location", value="weights")

    forged(tmp_path, forge)
    assert "expected all weights in the file, got 'factor' in another" in refused(tmp_path)


def test_operators_of_another_domain_are_refused(tmp_path: Path) -> None:
    def forge(handed_over: HandedOver) -> None:
        handed_over.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    forged(tmp_path, forge)
    assert "got ['com.microsoft']" in refused(tmp_path)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    result = HandedOver.honest().write(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    assert "model.onnx: sha256: expected" in refused(tmp_path)
    assert result.files[0].sha256 in refused(tmp_path)


def test_files_that_no_job_publishes_are_refused(tmp_path: Path) -> None:
    def forge(handed_over: HandedOver) -> None:
        handed_over.more_files = (("passwords.txt", b"secret"),)

    forged(tmp_path, forge)
    assert "files of the result: expected [('model.onnx', 'application/onnx')]" in refused(tmp_path)


def test_a_result_without_a_reference_is_refused(tmp_path: Path) -> None:
    def forge(handed_over: HandedOver) -> None:
        handed_over.case = None

    forged(tmp_path, forge)
    assert refused(tmp_path) == "the job left no reference rows (reference.safetensors)"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (ReferenceCase({"z": ROWS}, {"y": ROWS}), "inputs of the reference: expected ['x']"),
        (ReferenceCase({"x": ROWS}, {"z": ROWS}), "outputs of the reference: expected ['y']"),
        (ReferenceCase({"x": ROWS}, {"y": ROWS[:0]}), "holds no reference rows"),
        (ReferenceCase({"x": ROWS[:3]}, {"y": ROWS}), "holds no reference rows"),
        (ReferenceCase({"x": ROWS}, {"y": ROWS > 1}), "expected float32, got bool"),
        (ReferenceCase({"x": ROWS[:, 0]}, {"y": ROWS}), "ONNX Runtime fails on reference rows"),
    ],
)
def test_a_reference_of_another_graph_is_refused(
    tmp_path: Path, case: ReferenceCase, said: str
) -> None:
    def forge(handed_over: HandedOver) -> None:
        handed_over.case = case

    forged(tmp_path, forge)
    assert said in refused(tmp_path)


def test_a_reference_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    HandedOver.honest().write(tmp_path)
    (tmp_path / "reference.safetensors").write_bytes(b"\x80\x04pickle")
    assert "reference.safetensors holds no reference rows" in refused(tmp_path)


def test_texts_come_back_from_the_reference_with_all_their_bytes(tmp_path: Path) -> None:
    texts = np.array(["", "a\0b\0", "\U0001f600 é", ""], object).reshape(-1, 1)
    numbers = np.array([[np.nan], [1.0], [2.0], [3.0]])
    outputs = {"y": np.zeros((4, 2), np.float32)}
    case = ReferenceCase({"km/h": texts, "n": numbers}, outputs)
    save_reference({"model.onnx": [case], "bare.onnx": [case, case]}, tmp_path)
    read = load_reference(tmp_path)
    assert {graph: len(cases) for graph, cases in read.items()} == {"model.onnx": 1, "bare.onnx": 2}
    (back,) = read["model.onnx"]
    assert back.inputs["km/h"].tolist() == texts.tolist()
    np.testing.assert_array_equal(back.inputs["n"], numbers)
    np.testing.assert_array_equal(back.outputs["y"], outputs["y"])


def test_the_reference_keeps_to_its_bound_and_at_least_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MAX_GRAPH_BYTES", 80)
    wide = np.zeros((5, 100), np.float32)
    cases = [ReferenceCase({"x": ROWS}, {"y": ROWS}), ReferenceCase({"x": wide}, {"y": wide})]
    save_reference({"model.onnx": cases}, tmp_path)
    assert [len(case) for case in load_reference(tmp_path)["model.onnx"]] == [5, 1]


def test_a_second_look_needs_no_torch_and_no_data(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from modelrail_trainer.worker.__main__ import main\n"
        "assert main(['--job-directory', sys.argv[1], '--second-look']) == 0\n"
        "print(sorted({'torch', 'pyarrow', 'PIL', 'sklearn'} & set(sys.modules)))\n"
    )
    HandedOver.honest().write(tmp_path)
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (finished.returncode, finished.stdout) == (0, "[]\n"), finished.stderr
    assert (tmp_path / "verdict.json").is_file()
