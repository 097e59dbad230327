"""What is special about NVIDIA GPUs: options of execution providers, placement, CUDA graphs.

Inputs come from the network and outputs go there, so both lie in host memory, and a plain run makes
the same two copies as one with bound memory. Memory is bound only where it must not move: for CUDA
graphs.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES
from modelrail_inference.model.batching import Padding
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.session_settings import CudaSettings
from modelrail_inference.model.signature import DYNAMIC, Signature
from modelrail_inference.runtime.provider import ONNX_NAMES

PLACEMENT_ENTRY = "session.record_ep_graph_assignment_info"
"""Entry of a session's options that makes `operators_by_provider` possible."""

MAX_GRAPHS = 64
"""Most recordings that a GPU should hold of one session."""
_GRAPH_ID = "gpu_graph_id"
_NOT_RECORDED = "-1"
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of all inputs of one run, by name."""


class GraphError(Exception):
    """Runs of a model cannot be recorded; the message says why."""


def provider_chain(
    provider: Provider, cuda: CudaSettings | None
) -> list[tuple[str, dict[str, str]]]:
    """Returns the providers of a session, the preferred first, with options as they read them.

    TensorRT leaves to CUDA what it cannot do. The CPU, which takes the rest, comes by itself.
    """
    if provider is Provider.CPU:
        return [(ONNX_NAMES[Provider.CPU], {})]
    settings = cuda or CudaSettings()
    chain = [(ONNX_NAMES[Provider.CUDA], settings.provider_options())]
    if provider is Provider.TENSORRT:
        chain.insert(0, (ONNX_NAMES[Provider.TENSORRT], _tensorrt_options(settings)))
    return chain


def _tensorrt_options(settings: CudaSettings) -> dict[str, str]:
    options: dict[str, str] = {}
    if settings.device is not None:
        options["device_id"] = str(settings.device)
    if settings.tensorrt is not None:
        if settings.tensorrt.half_precision:
            # CUDA's provider reads 1; this one reads True, and with anything else does not load.
            options["trt_fp16_enable"] = "True"
        if settings.tensorrt.workspace_bytes is not None:
            options["trt_max_workspace_size"] = str(settings.tensorrt.workspace_bytes)
    return options


def operators_by_provider(session: Any) -> Mapping[str, int]:
    """Returns how many operators each provider of a session took, by ONNX Runtime's name."""
    found: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        found[part.ep_name] += len(part.get_nodes())
    return found


def why_idle(placed: Mapping[str, int], provider: Provider) -> str:
    """Returns why a session does not run on its provider; empty when it does.

    A provider can load and then take nothing, because none of the operators is one of its own.
    """
    if not placed or placed.get(ONNX_NAMES[provider]):
        return ""
    others = ", ".join(f"{count} on {name}" for name, count in sorted(placed.items()))
    return f"execution provider '{provider.value}' takes no operator of the model ({others})"


def graph_shapes(
    signature: Signature, buckets: Sequence[int], padding: Padding | None, *, batched: bool
) -> list[Shapes]:
    """Returns the shapes of all runs that there can be, smallest batches first.

    Args:
        signature: What the session takes, with the batch dimension and the mask.
        buckets: The only batch sizes.
        padding: Which inputs have the length of an edge; None when none has.
        batched: Whether there is a batch dimension.

    Raises:
        GraphError: There is no end of shapes, or more than a GPU should hold recordings of.
    """
    for spec in (*signature.inputs, *signature.outputs):
        if spec.datatype in ("BYTES", "BF16"):
            raise GraphError(f"'{spec.name}' is {spec.datatype}: expected numbers that numpy has")
    if batched and not buckets:
        raise GraphError("expected the parameter batch_buckets: a graph holds one batch size")
    sizes = buckets if batched else (0,)
    edges = padding.edges if padding is not None else (0,)
    if len(sizes) * len(edges) > MAX_GRAPHS:
        raise GraphError(
            f"expected at most {MAX_GRAPHS} shapes, got {len(sizes)} batch sizes of "
            f"{len(edges)} lengths"
        )
    return [
        _shapes(signature, size, padding, edge) for size, edge in itertools.product(sizes, edges)
    ]


def _shapes(signature: Signature, rows: int, padding: Padding | None, edge: int) -> Shapes:
    shapes = {}
    for spec in signature.inputs:
        shape = list(spec.shape)
        if rows:
            shape[0] = rows
        if padding is not None:
            padded = padding.inputs.get(spec.name)
            if padded is not None or spec.name == padding.mask:
                shape[padded.axis if padded else 1] = edge
        if DYNAMIC in shape:
            raise GraphError(
                f"input '{spec.name}' has shape {list(spec.shape)}: expected fixed sizes but for "
                "the batch and padded axes"
            )
        shapes[spec.name] = tuple(shape)
    return shapes


@dataclass(frozen=True, slots=True)
class _Recording:
    """One CUDA graph, and the memory on the device that it reads and writes."""

    number: int
    binding: Any
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]


class CudaGraphs:
    """Runs that were recorded on the GPU once and are replayed: one launch for all operators.

    A recording holds addresses, so each has its own inputs and outputs on the device. ONNX Runtime
    allows one run at a time on a session that records, whether that run is recorded or not.

    Args:
        session: ONNX Runtime's session, with the option `enable_cuda_graph`.
        device: Kind of memory of the inputs and outputs, in ONNX Runtime's words.
        device_id: Number of the device.
    """

    def __init__(self, session: Any, *, device: str = "cuda", device_id: int = 0) -> None:
        self._session = session
        self._device = (device, device_id)
        self._recordings: dict[object, _Recording] = {}
        self._running = threading.Lock()

    def record(self, shapes: Shapes, signature: Signature) -> None:
        """Records a run, and replays it on other inputs to see that it computes the same.

        Raises:
            GraphError: The replay computes something else than a plain run.
        """
        types = {spec.name: NUMPY_TYPES[spec.datatype] for spec in signature.inputs}
        zeros = {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}
        ones = {name: np.ones(shape, types[name]) for name, shape in shapes.items()}
        outputs = tuple(spec.name for spec in signature.outputs)
        with self._running:
            expected = self._plain(ones, outputs, onnxruntime.RunOptions())
            recording = self._bind(zeros, dict(zip(outputs, expected, strict=True)))
            # The first run with a number warms up and records; the second replays.
            self._replay(recording, zeros, outputs, onnxruntime.RunOptions())
            found = self._replay(recording, ones, outputs, onnxruntime.RunOptions())
            for name, one, other in zip(outputs, expected, found, strict=True):
                if not np.allclose(one, other, _RELATIVE, _ABSOLUTE, equal_nan=True):
                    raise GraphError(f"output '{name}' of a replay differs from a plain run's")
            self._recordings[_key(zeros)] = recording

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], options: Any
    ) -> list[NDArray[Any]]:
        """Replays the recording of these shapes; runs plainly where there is none.

        Args:
            inputs: Arrays by name.
            outputs: Names of the wanted outputs.
            options: ONNX Runtime's options of this one run.
        """
        recording = self._recordings.get(_key(inputs))
        with self._running:
            if recording is None:
                return self._plain(inputs, outputs, options)
            if options.terminate:  # a replay does not look
                raise RuntimeError("stopped while it waited for other runs")
            return self._replay(recording, inputs, outputs, options)

    def _plain(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], options: Any
    ) -> list[NDArray[Any]]:
        options.add_run_config_entry(_GRAPH_ID, _NOT_RECORDED)
        return list(self._session.run(list(outputs), dict(inputs), options))

    def _bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> _Recording:
        binding = self._session.io_binding()
        bound = {name: self._memory(array) for name, array in inputs.items()}
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, self._memory(array))
        # Number 0 is ONNX Runtime's own.
        return _Recording(len(self._recordings) + 1, binding, bound, tuple(outputs))

    def _memory(self, like: NDArray[Any]) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            like.shape, like.dtype.type, *self._device
        )

    def _replay(
        self,
        recording: _Recording,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        options: Any,
    ) -> list[NDArray[Any]]:
        options.add_run_config_entry(_GRAPH_ID, str(recording.number))
        for name, value in recording.inputs.items():
            value.update_inplace(inputs[name])
        self._session.run_with_iobinding(recording.binding, options)
        # Copies, as the next replay writes to the same memory.
        found = dict(zip(recording.outputs, recording.binding.copy_outputs_to_cpu(), strict=True))
        return [found[name] for name in outputs]


def _key(inputs: Mapping[str, NDArray[Any]]) -> object:
    return frozenset((name, array.shape, array.dtype.str) for name, array in inputs.items())
