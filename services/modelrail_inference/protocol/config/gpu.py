"""Reads what a `config.pbtxt` says about GPUs: the device, CUDA graphs and TensorRT.

instance_group { kind: KIND_GPU gpus: [1] }
optimization {
  cuda { graphs: true }
  execution_accelerators { gpu_execution_accelerator { name: "tensorrt"
    parameters { key: "precision_mode" value: "FP16" } } }
}
"""

from __future__ import annotations

import dataclasses
from typing import Final

from modelrail.oip.v2 import model_config_pb2 as pb
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import (
    CudaSettings,
    SessionSettings,
    TensorRtSettings,
)
from modelrail_inference.protocol.config.field_error import field_error, parse_number

_MAX_DEVICE = 1023
_MAX_BYTES = (1 << 63) - 1

_GRAPHS = "optimization.cuda.graphs"
_ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator"
_TENSORRT = "tensorrt"
_PRECISION, _WORKSPACE = "precision_mode", "max_workspace_size_bytes"
_HALF_PRECISION = {"FP32": False, "FP16": True}
_KINDS = {
    pb.ModelInstanceGroup.KIND_AUTO: None,
    pb.ModelInstanceGroup.KIND_CPU: Provider.CPU,
    pb.ModelInstanceGroup.KIND_GPU: Provider.CUDA,
}

GPU_FIELDS: Final = frozenset(
    {
        "instance_group.gpus",
        _GRAPHS,
        f"{_ACCELERATOR}.name",
        f"{_ACCELERATOR}.parameters.key",
    }
)
"""The fields that are read here."""


def read_provider(config: pb.ModelConfig) -> Provider | None:
    """Reads what the model shall run on; None where the configuration leaves that to the server.

    Raises:
        LoadError: It contradicts itself; the message names the field.
    """
    if len(config.instance_group) > 1:
        raise field_error(
            "instance_group", f"expected at most one, got {len(config.instance_group)}"
        )
    group = config.instance_group[0] if config.instance_group else pb.ModelInstanceGroup()
    if group.kind not in _KINDS:
        raise field_error("instance_group[0].kind", "expected KIND_AUTO, KIND_CPU or KIND_GPU")
    provider = _KINDS[group.kind]
    if group.gpus:
        provider = _on_gpu(provider, "instance_group[0].gpus", Provider.CUDA)
    if config.optimization.cuda.graphs:
        provider = _on_gpu(provider, _GRAPHS, Provider.CUDA)
    if config.optimization.execution_accelerators.gpu_execution_accelerator:
        provider = _on_gpu(provider, _ACCELERATOR, Provider.TENSORRT)
    return provider


def read_gpu(config: pb.ModelConfig, settings: SessionSettings) -> SessionSettings:
    """Adds what the configuration says about GPUs to the settings of the session.

    Raises:
        LoadError: It is not what is expected, or not all of it together is possible.
    """
    gpus = list(config.instance_group[0].gpus) if config.instance_group else []
    if len(gpus) > 1 or any(not 0 <= number <= _MAX_DEVICE for number in gpus):
        raise field_error(
            "instance_group[0].gpus", f"expected one number of at least 0, got {gpus}"
        )
    graphs = config.optimization.cuda.graphs
    tensorrt = _tensorrt(config.optimization.execution_accelerators)
    if not gpus and not graphs and tensorrt is None:
        return settings
    if graphs and settings.runs_parallel:
        raise field_error(_GRAPHS, "expected execution_mode 0: operators are recorded in one order")
    if graphs and tensorrt is not None:
        raise field_error(_GRAPHS, "expected CUDA alone: TensorRT's engines are not recorded")
    return dataclasses.replace(
        settings,
        cuda=dataclasses.replace(
            settings.cuda or CudaSettings(),
            device=gpus[0] if gpus else None,
            records_graphs=graphs,
            tensorrt=tensorrt,
        ),
    )


def write_provider(provider: Provider, config: pb.ModelConfig) -> None:
    """Writes what the model runs on into `config`, whoever chose it, for the RPC ModelConfig."""
    group = pb.ModelInstanceGroup
    config.instance_group[0].kind = group.KIND_CPU if provider is Provider.CPU else group.KIND_GPU
    accelerators = config.optimization.execution_accelerators
    if provider is Provider.TENSORRT and not accelerators.gpu_execution_accelerator:
        accelerators.gpu_execution_accelerator.add(name=_TENSORRT)


def write_gpu(cuda: CudaSettings, config: pb.ModelConfig) -> None:
    """Writes what is in force into `config`, for the RPC ModelConfig."""
    if cuda.device is not None:
        config.instance_group[0].gpus.append(cuda.device)
    if cuda.records_graphs:
        config.optimization.cuda.graphs = True
    if cuda.tensorrt is not None:
        parameters = {_PRECISION: "FP16" if cuda.tensorrt.half_precision else "FP32"}
        if cuda.tensorrt.workspace_bytes is not None:
            parameters[_WORKSPACE] = str(cuda.tensorrt.workspace_bytes)
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(
            name=_TENSORRT, parameters=parameters
        )


def _on_gpu(provider: Provider | None, field: str, wanted: Provider) -> Provider:
    if provider is Provider.CPU:
        raise field_error(field, "expected instance_group[0].kind of KIND_GPU or KIND_AUTO")
    return wanted


def _tensorrt(
    accelerators: pb.ModelOptimizationPolicy.ExecutionAccelerators,
) -> TensorRtSettings | None:
    given = accelerators.gpu_execution_accelerator
    if not given:
        return None
    if len(given) > 1 or given[0].name != _TENSORRT:
        names = ", ".join(repr(one.name[:40]) for one in given[:4])
        raise field_error(f"{_ACCELERATOR}.name", f"expected '{_TENSORRT}' alone, got {names}")
    field = f"{_ACCELERATOR}[0].parameters"
    parameters = dict(given[0].parameters)
    precision = parameters.pop(_PRECISION, "FP32")
    if precision not in _HALF_PRECISION:
        expected = " or ".join(_HALF_PRECISION)
        raise field_error(
            f"{field}['{_PRECISION}']", f"expected {expected}, got {precision[:20]!r}"
        )
    workspace = parameters.pop(_WORKSPACE, None)
    if parameters:
        # Among the others are those that name files: caches of engines would be written there.
        raise field_error(
            f"{field}['{min(parameters)[:80]}']", f"expected {_PRECISION} or {_WORKSPACE}"
        )
    return TensorRtSettings(
        half_precision=_HALF_PRECISION[precision],
        workspace_bytes=None
        if workspace is None
        else parse_number(f"{field}['{_WORKSPACE}']", workspace, _MAX_BYTES),
    )
