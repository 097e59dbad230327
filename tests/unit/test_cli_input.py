from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelrail.cli.command import Failure
from modelrail.cli.commands.serve import predict_command
from modelrail.cli.commands.transfer import model_id_of
from modelrail.cli.picture import shaded
from modelrail.cli.session import UsageError
from modelrail.cli.specification import example_names, read_specification
from modelrail.cli.tensors import as_array, plain, read_inputs
from modelrail.oip.v2 import grpc_service_pb2 as oip


def specification(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_every_example_is_a_specification() -> None:
    assert {"digits.yaml", "linear.yaml"} <= set(example_names())
    for name in example_names():
        assert read_specification(Path("examples") / name).publication.model


def test_a_specification_is_read_from_yaml(tmp_path: Path) -> None:
    spec = read_specification(
        specification(tmp_path, "dataset:\n  bundled: digits\nmodel:\n  linear:\nepochs: 3\n")
    )
    assert spec.dataset.bundled == "digits"
    assert spec.model.WhichOneof("architecture") == "linear"
    assert spec.epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "epoch: unknown field; expected display_name, dataset"),
        ("model:\n  cnn:\n    chanels: [3]", "model.cnn.chanels: unknown field; expected channels"),
        ("preprocessing:\n  - scale: {}", r"preprocessing\[0\].scale: unknown field"),
        ("model: linear", "model: expected fields"),
        ("epochs: many", "epochs"),
        ("epochs: [1", "is no YAML"),
        ("- 1", "expected fields"),
        (
            "model:\n  linear: {}\n  mlp: {}",
            "expected one of linear, mlp, cnn, resnet, gru, ",
        ),
        ("3: 4", "3: unknown field"),
    ],
)
def test_a_wrong_specification_is_refused_with_the_field(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(Failure, match=message):
        read_specification(specification(tmp_path, text))


def test_a_missing_specification_names_the_examples(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"does not exist; examples.*linear\.yaml"):
        read_specification(tmp_path / "nothing.yaml")


async def test_inputs_come_from_texts_files_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    (tmp_path / "y.json").write_text("[1, 2]")
    (tmp_path / "stdin").write_text('{"w": "text"}')
    with (tmp_path / "stdin").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        values = await read_inputs(
            [f"x=@{tmp_path / 'x.npy'}", f"y=@{tmp_path / 'y.json'}", "z=0.5"], document="-"
        )
    assert values["x"].shape == (2, 2)
    assert (values["y"], values["z"], values["w"]) == ([1, 2], 0.5, "text")


@pytest.mark.parametrize("given", ["x", "=1", "x=nonsense", "x=@/no/such/file.npy"])
async def test_an_input_of_another_form_is_a_usage_error(given: str) -> None:
    with pytest.raises(UsageError, match="--input"):
        await read_inputs([given], None)


async def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="allow_pickle"):
        await read_inputs([f"x=@{tmp_path / 'x.npy'}"], None)


def test_missing_outer_axes_are_added() -> None:
    assert as_array("x", 0.5, "FP32", [-1, 1]).shape == (1, 1)
    assert as_array("x", np.ones((8, 8)), "FP32", [-1, 8, 8]).shape == (1, 8, 8)
    assert as_array("x", [[1], [2]], "INT64", [-1, 1]).dtype == np.int64
    assert as_array("x", "text", "BYTES", [-1]).tolist() == ["text"]


@pytest.mark.parametrize(
    ("value", "datatype", "shape", "message"),
    [
        ([1, 2, 3], "FP32", [-1, 2], r"expected shape \[-1, 2\].*got \[1, 3\]"),
        ([[1, 2], [3]], "FP32", [-1, 2], "full array"),
        ("text", "FP32", [-1], "expected FP32 numbers, got 'text'"),
        ([1.5], "INT64", [-1], "expected INT64 values"),
        ([300], "UINT8", [-1], "expected UINT8 values"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(
    value: object, datatype: str, shape: list[int], message: str
) -> None:
    with pytest.raises(Failure, match=f"input x: .*{message}"):
        as_array("x", value, datatype, shape)


def test_answers_become_json() -> None:
    assert plain(np.array([[b"a"], [b"b"]], dtype=object)) == [["a"], ["b"]]
    assert plain(np.ones((1, 2), dtype=np.float32)) == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "model"),
    [("digits.onnx", "digits"), ("My Model (2).onnx", "my-model-2"), ("..a.onnx", "a")],
)
def test_a_model_is_named_after_its_file(name: str, model: str) -> None:
    assert model_id_of(Path(name)) == model


def test_a_file_without_a_usable_name_needs_one() -> None:
    with pytest.raises(Failure, match="suggests no model id"):
        model_id_of(Path("ЖЖ.onnx"))


def test_the_ready_made_command_fits_the_model() -> None:
    metadata = oip.ModelMetadataResponse(name="m")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
    metadata.inputs.add(name="t", datatype="BYTES", shape=[1])
    assert predict_command("h:1", "m", metadata) == (
        "modelrail predict m --inference h:1 --input 'x=[[0, 0]]' --input 't=[\"text\"]'"
    )


def test_an_image_becomes_a_line_of_shades_for_two_rows_of_pixels() -> None:
    image = np.zeros((8, 8))
    image[0:2, 0] = 16
    lines = shaded(image, 16.0)
    assert len(lines) == 4
    assert lines[0] == "█" + " " * 7
    assert lines[1:] == [" " * 8] * 3
