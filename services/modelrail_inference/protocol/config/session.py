"""Reads what a `config.pbtxt` says about the session: Triton's parameters of its ONNX backend.

Each key is known by name and each value is checked. Keys that are not here are refused, those that
name files among them: they would let a configuration write where the server can.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.model.session_settings import (
    ArenaGrowth,
    ConvolutionSearch,
    CudaSettings,
    GraphLevel,
    SessionSettings,
)
from modelrail_inference.protocol.config.field_error import field_error, parse_number
from modelrail_inference.protocol.config.gpu import write_gpu

_MAX_THREADS = 1024
_MAX_BYTES = (1 << 63) - 1

_INTRA_OP = "intra_op_thread_count"
_INTER_OP = "inter_op_thread_count"
_MODE = "execution_mode"
_ARENA = "enable_mem_arena"
_PATTERN = "enable_mem_pattern"
_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_GPU_LIMIT = "gpu_mem_limit"
_GPU_GROWTH = "arena_extend_strategy"
_GPU_SEARCH = "cudnn_conv_algo_search"
_GPU_COPIES = "do_copy_in_default_stream"
_CUDA_KEYS = (_GPU_LIMIT, _GPU_GROWTH, _GPU_SEARCH, _GPU_COPIES)
_KEYS = (_INTRA_OP, _INTER_OP, _MODE, _ARENA, _PATTERN, _SHRINKAGE, *_CUDA_KEYS)

_SWITCH = {"0": False, "1": True, "false": False, "true": True}
_MODES = {"0": False, "1": True}
_GROWTHS = {"0": ArenaGrowth.NEXT_POWER_OF_TWO, "1": ArenaGrowth.SAME_AS_REQUESTED}
_SEARCHES = {
    "0": ConvolutionSearch.EXHAUSTIVE,
    "1": ConvolutionSearch.HEURISTIC,
    "2": ConvolutionSearch.DEFAULT,
}
_SHRINKABLE = {"cpu:0": True}
# Triton's numbers; 0 is what nobody has set.
_LEVELS = {
    -1: GraphLevel.BASIC,
    0: GraphLevel.ALL,
    1: GraphLevel.EXTENDED,
    2: GraphLevel.NONE,
}

T = TypeVar("T")


def read_session(config: pb.ModelConfig, others: Collection[str]) -> SessionSettings:
    """Reads the parameters of the session.

    Args:
        config: The configuration.
        others: Keys of `parameters` that somebody else reads.

    Raises:
        LoadError: A key is unknown, or a value is not one of its key's; the message names it.
    """
    values = {
        key: value.string_value for key, value in config.parameters.items() if key not in others
    }
    for key in values:
        if key not in _KEYS:
            expected = ", ".join((*_KEYS, *others))
            raise field_error(f"parameters['{key[:80]}']", f"expected one of {expected}")
    level = config.optimization.graph.level
    if level not in _LEVELS:
        raise field_error("optimization.graph.level", f"expected -1, 1 or 2, got {level}")
    uses_arena = _choice(values, _ARENA, _SWITCH, default=True)
    shrinks_arena = _choice(values, _SHRINKAGE, _SHRINKABLE, default=False)
    if shrinks_arena and not uses_arena:
        raise field_error(
            f"parameters['{_SHRINKAGE}']", f"expected {_ARENA} of 1: there is no arena"
        )
    inter_op_threads = _number(values, _INTER_OP, _MAX_THREADS)
    return SessionSettings(
        intra_op_threads=_number(values, _INTRA_OP, _MAX_THREADS),
        inter_op_threads=inter_op_threads or 1,
        runs_parallel=_choice(values, _MODE, _MODES, default=(inter_op_threads or 1) > 1),
        uses_arena=uses_arena,
        uses_pattern=_choice(values, _PATTERN, _SWITCH, default=True),
        shrinks_arena=shrinks_arena,
        graph_level=_LEVELS[level],
        cuda=_cuda(values) if any(key in values for key in _CUDA_KEYS) else None,
    )


def write_session(settings: SessionSettings, config: pb.ModelConfig) -> None:
    """Writes what differs from the defaults into `config`, for the RPC ModelConfig."""
    usual = _parameters(SessionSettings())
    for key, value in _parameters(settings).items():
        if value is not None and value != usual[key]:
            config.parameters[key].string_value = value
    if settings.graph_level is not GraphLevel.ALL:
        config.optimization.graph.level = _key_of(_LEVELS, settings.graph_level)
    if settings.cuda is not None:
        write_gpu(settings.cuda, config)


def _parameters(settings: SessionSettings) -> dict[str, str | None]:
    cuda = settings.cuda or CudaSettings()
    return {
        _INTRA_OP: _number_text(settings.intra_op_threads),
        _INTER_OP: _number_text(settings.inter_op_threads),
        _MODE: _number_text(settings.runs_parallel),
        _ARENA: _number_text(settings.uses_arena),
        _PATTERN: _number_text(settings.uses_pattern),
        _SHRINKAGE: "cpu:0" if settings.shrinks_arena else None,
        _GPU_LIMIT: _number_text(cuda.memory_limit_bytes),
        _GPU_GROWTH: _key_of(_GROWTHS, cuda.arena_growth),
        _GPU_SEARCH: _key_of(_SEARCHES, cuda.convolution_search),
        _GPU_COPIES: _number_text(cuda.copies_in_default_stream),
    }


def _cuda(values: Mapping[str, str]) -> CudaSettings:
    return CudaSettings(
        memory_limit_bytes=_number(values, _GPU_LIMIT, _MAX_BYTES),
        arena_growth=_choice(values, _GPU_GROWTH, _GROWTHS, default=None),
        convolution_search=_choice(values, _GPU_SEARCH, _SEARCHES, default=None),
        copies_in_default_stream=_choice(values, _GPU_COPIES, _MODES, default=None),
    )


def _number(values: Mapping[str, str], key: str, maximum: int) -> int | None:
    text = values.get(key)
    return None if text is None else parse_number(f"parameters['{key}']", text, maximum)


def _choice(values: Mapping[str, str], key: str, choices: Mapping[str, T], *, default: Any) -> T:
    text = values.get(key)
    if text is None:
        chosen: T = default
        return chosen
    if text not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        raise field_error(f"parameters['{key}']", f"expected {expected}, got {text[:20]!r}")
    return choices[text]


def _key_of(choices: Mapping[Any, T], value: T | None) -> Any:
    return next((key for key, choice in choices.items() if choice is value), None)


def _number_text(value: int | None) -> str | None:
    return None if value is None else str(int(value))
