"""What a configuration says about GPUs is honoured as written, or refused with the field's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.model.definition import LoadError, ModelSettings
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import CudaSettings, TensorRtSettings
from modelrail_inference.protocol.config.gpu import write_gpu, write_provider
from modelrail_inference.protocol.config.model_config import read_settings

TENSORRT = """
    optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt"
      parameters { key: "precision_mode" value: "FP16" }
      parameters { key: "max_workspace_size_bytes" value: "1073741824" } } } }
"""


def read(folder: Path, text: str) -> ModelSettings:
    path = folder / "config.pbtxt"
    path.write_text(text)
    return read_settings(path, "m")


def cuda_of(settings: ModelSettings) -> CudaSettings:
    assert settings.session.cuda is not None
    return settings.session.cuda


def test_a_configuration_without_gpus_says_nothing_about_them(tmp_path: Path) -> None:
    settings = read(tmp_path, "optimization { } instance_group { count: 2 }")
    assert settings.provider is None
    assert settings.session.cuda is None


def test_the_device_becomes_an_option_of_the_provider(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """instance_group { kind: KIND_GPU gpus: [1] }
        parameters { key: "gpu_mem_limit" value { string_value: "1000" } }""",
    )
    assert settings.provider is Provider.CUDA
    options = cuda_of(settings).provider_options()
    assert options == {"gpu_mem_limit": "1000", "device_id": "1"}


@pytest.mark.parametrize(
    "text",
    ["instance_group { gpus: [0] }", "optimization { cuda { graphs: true } }"],
)
def test_what_only_a_gpu_can_do_asks_for_one(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).provider is Provider.CUDA


def test_graphs_are_recorded_where_the_configuration_says_so(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """max_batch_size: 4 optimization { cuda { graphs: true } }
        parameters { key: "batch_buckets" value { string_value: "[1, 4]" } }""",
    )
    assert cuda_of(settings).records_graphs
    assert cuda_of(settings).provider_options() == {"enable_cuda_graph": "1"}


def test_tensorrt_is_asked_for_by_tritons_accelerator(tmp_path: Path) -> None:
    settings = read(tmp_path, TENSORRT)
    assert settings.provider is Provider.TENSORRT
    assert cuda_of(settings).tensorrt == TensorRtSettings(
        half_precision=True, workspace_bytes=1 << 30
    )


def test_tensorrt_is_shown_whoever_chose_it(tmp_path: Path) -> None:
    shown = pb.ModelConfig()
    shown.instance_group.add(name="m", count=1)
    write_provider(Provider.TENSORRT, shown)
    assert read(tmp_path, text_format.MessageToString(shown)).provider is Provider.TENSORRT
    once = text_format.MessageToString(shown)
    write_provider(Provider.TENSORRT, shown)
    assert text_format.MessageToString(shown) == once


def test_what_was_read_is_written_for_callers(tmp_path: Path) -> None:
    settings = read(tmp_path, f"instance_group {{ kind: KIND_GPU gpus: [2] }} {TENSORRT}")
    config = pb.ModelConfig()
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU)
    write_gpu(cuda_of(settings), config)
    (tmp_path / "config.pbtxt").write_text(str(config))
    again = read_settings(tmp_path / "config.pbtxt", "m")
    assert again.provider is settings.provider
    assert again.session.cuda == settings.session.cuda


def accelerator(text: str) -> str:
    return f"optimization {{ execution_accelerators {{ {text} }} }}"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("instance_group { kind: KIND_CPU gpus: [0] }", r"instance_group\[0\].gpus"),
        ("instance_group { gpus: [0, 1] }", r"instance_group\[0\].gpus: expected one"),
        ("instance_group { gpus: [-1] }", r"instance_group\[0\].gpus: expected one"),
        (
            "instance_group { kind: KIND_CPU } optimization { cuda { graphs: true } }",
            "optimization.cuda.graphs: expected instance_group",
        ),
        (
            """optimization { cuda { graphs: true } }
            parameters { key: "execution_mode" value { string_value: "1" } }""",
            "optimization.cuda.graphs: expected execution_mode 0",
        ),
        ("optimization { cuda { busy_wait_events: true } }", "optimization.cuda.busy_wait_events"),
        ("optimization { cuda { graph_spec { } graphs: true } }", "optimization.cuda.graph_spec"),
        (TENSORRT.replace("{", "{ cuda { graphs: true }", 1), "expected CUDA alone"),
        (f"{TENSORRT} instance_group {{ kind: KIND_CPU }}", "gpu_execution_accelerator: expected"),
        (
            accelerator("gpu_execution_accelerator { name: 'openvino' }"),
            "gpu_execution_accelerator.name: expected 'tensorrt' alone, got 'openvino'",
        ),
        (
            accelerator("cpu_execution_accelerator { name: 'openvino' }"),
            "cpu_execution_accelerator.name: not supported",
        ),
        (
            accelerator(
                "gpu_execution_accelerator { name: 'tensorrt' "
                "parameters { key: 'trt_engine_cache_path' value: '/x' } }"
            ),
            r"parameters\['trt_engine_cache_path'\]: expected precision_mode",
        ),
        (
            accelerator(
                "gpu_execution_accelerator { name: 'tensorrt' "
                "parameters { key: 'precision_mode' value: 'INT8' } }"
            ),
            r"parameters\['precision_mode'\]: expected FP32 or FP16, got 'INT8'",
        ),
        (
            accelerator(
                "gpu_execution_accelerator { name: 'tensorrt' "
                "parameters { key: 'max_workspace_size_bytes' value: '1e9' } }"
            ),
            r"parameters\['max_workspace_size_bytes'\]: expected 1 to",
        ),
    ],
)
def test_what_is_not_offered_on_gpus_is_refused_by_name(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(LoadError, match=rf"config\.pbtxt: .*{named}"):
        read(tmp_path, text)
