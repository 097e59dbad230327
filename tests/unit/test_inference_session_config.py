"""Parameters of the session are typed: each is known by name, checked, and shown again."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.model.definition import LoadError
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import (
    ArenaGrowth,
    ConvolutionSearch,
    CudaSettings,
    GraphLevel,
    SessionSettings,
)
from modelrail_inference.protocol.config.model_config import read_settings
from modelrail_inference.protocol.config.session import write_session
from modelrail_inference.runtime.session import SessionOptions, _session_options

EVERYTHING = {
    "intra_op_thread_count": "3",
    "inter_op_thread_count": "2",
    "execution_mode": "1",
    "enable_mem_pattern": "0",
    "memory.enable_memory_arena_shrinkage": "cpu:0",
    "gpu_mem_limit": "4294967296",
    "arena_extend_strategy": "1",
    "cudnn_conv_algo_search": "2",
    "do_copy_in_default_stream": "0",
}


def read(folder: Path, parameters: dict[str, str], more: str = "") -> SessionSettings:
    lines = [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    ]
    path = folder / "config.pbtxt"
    path.write_text("\n".join([*lines, more]))
    return read_settings(path, "m").session


def test_every_parameter_becomes_a_field_and_is_shown_again(tmp_path: Path) -> None:
    settings = read(tmp_path, EVERYTHING, "optimization { graph { level: -1 } }")
    assert settings == SessionSettings(
        intra_op_threads=3,
        inter_op_threads=2,
        runs_parallel=True,
        uses_pattern=False,
        shrinks_arena=True,
        graph_level=GraphLevel.BASIC,
        cuda=CudaSettings(
            memory_limit_bytes=4 << 30,
            arena_growth=ArenaGrowth.SAME_AS_REQUESTED,
            convolution_search=ConvolutionSearch.DEFAULT,
            copies_in_default_stream=False,
        ),
    )
    shown = pb.ModelConfig()
    write_session(settings, shown)
    assert {key: value.string_value for key, value in shown.parameters.items()} == EVERYTHING
    assert shown.optimization.graph.level == -1


def test_defaults_are_not_shown() -> None:
    shown = pb.ModelConfig()
    write_session(SessionSettings(), shown)
    assert shown == pb.ModelConfig()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimized_model_filepath", "/etc/passwd", "expected one of intra_op_thread_count"),
        ("profile_file_prefix", "/x", "expected one of"),
        ("session.load_model_format", "ORT", "expected one of"),
        ("intra_op_thread_count", "0", "expected 1 to 1024"),
        ("inter_op_thread_count", "9" * 5000, "expected 1 to 1024"),
        ("execution_mode", "2", "'0' or '1'"),
        ("enable_mem_arena", "yes", "'0' or '1'"),
        ("enable_mem_pattern", "", "'0' or '1'"),
        ("memory.enable_memory_arena_shrinkage", "cpu:0;gpu:/x", "'cpu:0'"),
        ("gpu_mem_limit", "-1", "expected 1 to"),
        ("arena_extend_strategy", "kSameAsRequested", "'0' or '1'"),
        ("cudnn_conv_algo_search", "3", "'0' or '1' or '2'"),
        ("do_copy_in_default_stream", "2", "'0' or '1'"),
    ],
)
def test_what_is_not_known_or_not_a_value_is_refused_by_name(
    tmp_path: Path, key: str, value: str, expected: str
) -> None:
    with pytest.raises(LoadError, match=rf"parameters\['{key}'\].*{expected}"):
        read(tmp_path, {key: value})


def test_a_level_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"optimization\.graph\.level: expected -1, 1 or 2, got 3"):
        read(tmp_path, {}, "optimization { graph { level: 3 } }")


def test_no_arena_can_shrink_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"enable_memory_arena_shrinkage.*there is no arena"):
        read(
            tmp_path,
            {"enable_mem_arena": "0", "memory.enable_memory_arena_shrinkage": "cpu:0"},
        )


def test_settings_reach_the_session() -> None:
    settings = SessionSettings(
        intra_op_threads=3,
        inter_op_threads=2,
        runs_parallel=True,
        uses_arena=False,
        uses_pattern=False,
        graph_level=GraphLevel.NONE,
    )
    native = _session_options(SessionOptions(Provider.CPU, 8, settings))
    assert (native.intra_op_num_threads, native.inter_op_num_threads) == (3, 2)
    assert native.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not native.enable_cpu_mem_arena
    assert not native.enable_mem_pattern
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert native.graph_optimization_level == level


def test_settings_of_a_gpu_are_refused_on_the_cpu() -> None:
    settings = SessionSettings(cuda=CudaSettings(memory_limit_bytes=1 << 30))
    with pytest.raises(ValueError, match="gpu_mem_limit: expected execution provider 'cuda'"):
        SessionOptions(Provider.CPU, 1, settings)
    on_gpu = SessionOptions(Provider.CUDA, 1, settings)
    assert on_gpu.settings.cuda is not None
    assert on_gpu.settings.cuda.provider_options() == {"gpu_mem_limit": str(1 << 30)}
