"""One loaded ONNX file: the only module that runs ONNX Runtime."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import GraphLevel, SessionSettings
from modelrail_inference.model.signature import DYNAMIC, Signature, TensorSpec
from modelrail_inference.runtime.cuda import (
    PLACEMENT_ENTRY,
    CudaGraphs,
    GraphError,
    Shapes,
    operators_by_provider,
    provider_chain,
    why_idle,
)
from modelrail_inference.runtime.messages import without_places

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
# What allocators of ONNX Runtime, CUDA, cuBLAS and cuDNN say when there is too little memory.
_OUT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "Failed to allocate memory",
    "is smaller than requested bytes of",
    "out of memory",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
)
# What CUDA and its libraries say when no inputs are to blame. Not among them is what sizes of
# inputs can cause: an invalid argument or configuration, a bad parameter, what is not supported.
_DEVICE_FAILED = (
    # The process loses what it had on the device: from then on every run fails, of any model.
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "context is destroyed",
    # The device itself is broken or gone.
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "no CUDA-capable device",
    "busy or unavailable",
    # cuDNN, cuBLAS and cuFFT, whose kernels the device did not run.
    "_STATUS_NOT_INITIALIZED",
    "_STATUS_MAPPING_ERROR",
    "_STATUS_EXECUTION_FAILED",
    "_STATUS_INTERNAL_ERROR",
    "CUFFT_EXEC_FAILED",
    "CUFFT_INTERNAL_ERROR",
)
_NO_THREAD = "pthread_create failed"
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_GRAPH_LEVELS = {
    GraphLevel.NONE: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    GraphLevel.BASIC: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    GraphLevel.EXTENDED: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    GraphLevel.ALL: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class ModelFileError(Exception):
    """The file cannot be served; the message says why and shows no path."""


class ProviderIdle(ModelFileError):
    """The provider loads, and none of the model's operators is one of its own."""


class RunError(Exception):
    """The model could not compute these inputs; the message shows no path of this machine."""


class OutOfMemory(RunError):
    """The run wanted more memory than there is."""


class DeviceError(Exception):
    """The device or its runtime failed, whatever the inputs: the same elsewhere may work."""


class RunTerminatedError(Exception):
    """The run was stopped because nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The parameters of one session.

    Attributes:
        provider: What computes; never AUTO.
        intra_op_threads: Threads that share one operator, where the settings say nothing.
        settings: What the model's configuration says.
    """

    provider: Provider
    intra_op_threads: int = 1
    settings: SessionSettings = field(default_factory=SessionSettings)

    def __post_init__(self) -> None:
        """Checks the settings against the provider.

        Raises:
            ValueError: Settings of a GPU on another provider.
        """
        cuda = self.settings.cuda
        if cuda is not None and self.provider is Provider.CPU:
            raise ValueError(
                f"{', '.join(cuda.provider_options())}: expected execution provider 'cuda', got "
                f"'{self.provider.value}'"
            )


class Run:
    """One run, which another thread can stop. ONNX Runtime looks at the flag between operators."""

    __slots__ = ("_options",)

    def __init__(self) -> None:
        self._options = onnxruntime.RunOptions()

    def terminate(self) -> None:
        """Stops the run as soon as its present operator ends; before it started, at once."""
        self._options.terminate = True

    @property
    def terminated(self) -> bool:
        """Whether the run was told to stop."""
        return bool(self._options.terminate)


class Session:
    """A model file in memory on one execution provider. Many threads may run it at the same time.

    Args:
        path: The ONNX file. External data is found beside it and nowhere else, so the folder must
            hold nothing but files of this model.
        options: Run parameters.

    Raises:
        ModelFileError: The file is no ONNX model, the model is not valid, or an input or output
            is no tensor that the protocol can carry.
        ProviderIdle: The provider runs nothing of it.
        OutOfMemory: There is too little memory for the model, or no thread for its operators.
        DeviceError: The device has failed.
    """

    def __init__(self, path: Path, options: SessionOptions) -> None:
        cuda = options.settings.cuda
        chain = provider_chain(options.provider, cuda)
        try:
            # The wrapper's fallback would retry on another provider and print to stdout.
            self._session = onnxruntime.InferenceSession(
                str(path),
                _session_options(options),
                providers=chain,
                enable_fallback=0,
            )
        except MemoryError as error:
            raise OutOfMemory("the model needs more memory than there is") from error
        except (RuntimeError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise _load_error(error, path, options.provider) from error
        except Exception as error:  # ONNX Runtime's classes derive from Exception itself
            if type(error).__module__.startswith("onnxruntime."):
                raise _load_error(error, path, options.provider) from error
            raise
        self._session.disable_fallback()
        missing = {wanted for wanted, _ in chain} - set(self._session.get_providers())
        if missing:
            raise ModelFileError(
                f"execution provider '{options.provider.value}' was requested, but the session "
                f"runs without {', '.join(sorted(missing))}"
            )
        self.provider = options.provider
        self.operators: Mapping[str, int] = {}
        """How many operators each provider took; not counted where the CPU runs all."""
        if options.provider is not Provider.CPU:
            self.operators = operators_by_provider(self._session)
            if reason := why_idle(self.operators, options.provider):
                raise ProviderIdle(reason)
        self._graphs = (
            CudaGraphs(self._session, device_id=cuda.device or 0)
            if cuda is not None and cuda.records_graphs
            else None
        )
        self._shrinks_arena = options.settings.shrinks_arena
        try:
            self.signature = Signature(
                inputs=tuple(_spec("input", node) for node in self._session.get_inputs()),
                outputs=tuple(_spec("output", node) for node in self._session.get_outputs()),
            )
            # What the exporter said about the model, `modelrail.*` among it.
            self.metadata: Mapping[str, str] = dict(
                self._session.get_modelmeta().custom_metadata_map
            )
        except UnicodeDecodeError as error:
            raise ModelFileError("a name in the graph is not valid UTF-8") from error
        # Numpy has no bfloat16 that ONNX Runtime takes, so such models pass OrtValues around.
        self._has_bfloat16 = any(
            spec.datatype == "BF16" for spec in (*self.signature.inputs, *self.signature.outputs)
        )

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Run
    ) -> list[NDArray[Any]]:
        """Computes the named outputs, in that order. BYTES tensors are object arrays of `str`.

        Raises:
            RunError: The model cannot compute these inputs.
            DeviceError: The device has failed.
            RunTerminatedError: `run` was told to stop.
        """
        if self._shrinks_arena:
            run._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            if self._has_bfloat16:
                return self._run_values(inputs, outputs, run)
            if self._graphs is not None:
                return self._graphs.run(inputs, outputs, run._options)
            return list(self._session.run(list(outputs), dict(inputs), run._options))
        except UnicodeDecodeError as error:
            strings = [
                spec.name
                for spec in self.signature.outputs
                if spec.datatype == "BYTES" and spec.name in outputs
            ]
            raise RunError(f"output '{', '.join(strings)}' is not valid UTF-8") from error
        except MemoryError as error:
            raise OutOfMemory("the run needs more memory than there is") from error
        except Exception as error:
            if run.terminated:
                raise RunTerminatedError from error
            if not _from_onnxruntime(error):
                raise
            raise _run_error(error, self.provider) from error

    def record(self, shapes: Shapes, signature: Signature) -> None:
        """Records a run of these shapes as a CUDA graph, which later runs of the same replay.

        Raises:
            RunError: The model cannot be run with these shapes, or not be recorded.
            DeviceError: The device has failed.
        """
        if self._graphs is None:
            raise RunError("the session was not made to record runs")
        try:
            self._graphs.record(shapes, signature)
        except GraphError as error:
            raise RunError(str(error)) from error
        except MemoryError as error:
            raise OutOfMemory("a recording needs more memory than there is") from error
        except Exception as error:
            if not _from_onnxruntime(error):
                raise
            raise _run_error(error, self.provider) from error

    def _run_values(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Run
    ) -> list[NDArray[Any]]:
        values = {name: _to_value(array) for name, array in inputs.items()}
        found = self._session.run_with_ort_values(list(outputs), values, run._options)
        return [_from_value(value) for value in found]


def _session_options(options: SessionOptions) -> Any:
    settings = options.settings
    native = onnxruntime.SessionOptions()
    native.intra_op_num_threads = settings.intra_op_threads or options.intra_op_threads
    native.inter_op_num_threads = settings.inter_op_threads
    if settings.runs_parallel:
        native.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    # The arena is the session's own, so its memory goes when the model does. How it grows can be
    # chosen only for an arena that all sessions share, which would keep the memory.
    native.enable_cpu_mem_arena = settings.uses_arena
    native.enable_mem_pattern = settings.uses_pattern
    native.graph_optimization_level = _GRAPH_LEVELS[settings.graph_level]
    # Idle threads sleep. Spinning ones were measured on 2 CPUs that nobody else used: a model of
    # 8 ms was no faster; a tiny MLP won 10 to 40 us, at 1.3 ms of CPU time instead of 0.1 for each
    # run that came 1 ms after the last, on CPUs that decode and answer requests meanwhile.
    native.add_session_config_entry("session.intra_op.allow_spinning", "0")
    native.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if options.provider is not Provider.CPU:
        native.add_session_config_entry(PLACEMENT_ENTRY, "1")
    native.log_severity_level = 3  # errors; warnings about graphs help nobody who only serves them
    return native


def _spec(kind: str, node: Any) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise ModelFileError(
            f"{kind} '{node.name}' has the type {node.type}, which the protocol cannot carry"
        )
    if datatype not in NUMPY_TYPES:
        raise ModelFileError(f"{kind} '{node.name}' is BF16, which needs the package ml-dtypes")
    shape = tuple(size if isinstance(size, int) and size >= 0 else DYNAMIC for size in node.shape)
    return TensorSpec(node.name, datatype, shape)


def _to_value(array: NDArray[Any]) -> Any:
    if array.dtype == NUMPY_TYPES.get("BF16"):
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), _BFLOAT16
        )
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: Any) -> NDArray[Any]:
    if value.data_type() != "tensor(bfloat16)":
        array: NDArray[Any] = value.numpy()
        return array
    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), math.prod(shape) * 2)
    return np.frombuffer(raw, dtype=NUMPY_TYPES["BF16"]).reshape(shape)


def _from_onnxruntime(error: Exception) -> bool:
    return isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")


def _load_error(
    error: Exception, path: Path, provider: Provider
) -> ModelFileError | OutOfMemory | DeviceError:
    text = str(error)
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return OutOfMemory("the model needs more memory than there is")
    if _NO_THREAD in text:
        return OutOfMemory("no thread could be started: the limit of this system is reached")
    if _tells_device_failed(text, provider):
        return _device_error(text)
    text = without_places(text.replace(str(path), "the file"))
    return ModelFileError(f"not a model that ONNX Runtime can load: {text}")


def _run_error(error: Exception, provider: Provider) -> RunError | DeviceError:
    text = str(error)
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return OutOfMemory("the run needs more memory than there is")
    _, found, reason = text.partition("Status Message: ")
    if _tells_device_failed(text, provider):
        return _device_error(reason if found else text)
    return RunError(without_places(reason if found else text))


def _tells_device_failed(text: str, provider: Provider) -> bool:
    # The processor says nothing of the kind, but names in a model are the choice of who made it.
    return provider is not Provider.CPU and any(sign in text for sign in _DEVICE_FAILED)


def _device_error(reason: str) -> DeviceError:
    # Behind it come the name of this machine and the place in ONNX Runtime's source.
    return DeviceError(f"the device failed: {without_places(reason.partition(' ; ')[0])}")
