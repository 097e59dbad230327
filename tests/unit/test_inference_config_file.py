"""`config.pbtxt` is honoured as written, or refused with the name of the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelrail.names import InvalidName
from modelrail_inference.model.definition import LoadError
from modelrail_inference.model.provider import Provider
from modelrail_inference.protocol.config.model_config import read_settings
from modelrail_inference.sources.file_name import name_of_file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("""
        name: "m" backend: "onnxruntime" max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: [4] }
        version_policy { specific { versions: [3, 1] } }
        instance_group { kind: KIND_CPU count: 3 }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
        parameters { key: "reject_nonfinite" value { string_value: "true" } }
        model_transaction_policy { decoupled: false }
    """)
    settings = read_settings(path, "m")
    assert settings.max_batch_size == 8
    assert settings.inputs[0].shape == (-1, 4)
    assert settings.provider is Provider.CPU
    assert settings.instances == 3
    assert settings.session.intra_op_threads == 2
    assert settings.rejects_nonfinite
    assert settings.version_policy.choose([1, 2, 3]) == [1, 3]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense: 1", "nonsense"),
        ("dynamic_batching { }", "dynamic_batching"),
        ("sequence_batching { }", "sequence_batching"),
        ("ensemble_scheduling { step { model_name: 'a' } }", "ensemble_scheduling.step"),
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled"),
        ("response_cache { enable: true }", "response_cache.enable"),
        ("name: 'other'", "name: expected 'm'"),
        ("backend: 'python'", "backend"),
        ("platform: 'tensorrt_plan'", "platform"),
        ("max_batch_size: -1", "max_batch_size"),
        ("default_model_filename: '../secret'", "default_model_filename"),
        ("instance_group { count: -1 }", r"instance_group\[0\].count"),
        ("parameters { key: 'optimized_model_filepath' value { string_value: '/x' } }", "optim"),
        ("parameters { key: 'intra_op_thread_count' value { string_value: 'x' } }", "intra_op"),
        (
            "parameters { key: 'reject_nonfinite' value { string_value: 'yes' } }",
            "reject_nonfinite",
        ),
        ("input { name: 'x' dims: [1] }", r"input\[0\].data_type"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    with pytest.raises(LoadError, match=rf"config\.pbtxt: .*{named}"):
        read_settings(path, "m")


def test_a_file_gets_a_well_formed_name() -> None:
    assert name_of_file(Path("/a/My Net (v2).onnx")) == "my-net-v2"
    assert name_of_file(Path("resnet18.v1.onnx")) == "resnet18.v1"
    with pytest.raises(InvalidName):
        name_of_file(Path("ž.onnx"))
