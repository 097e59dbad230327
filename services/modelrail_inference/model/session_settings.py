"""What a configuration may say about a session. Typed fields only: free options can write files."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class GraphLevel(enum.Enum):
    """How far ONNX Runtime rewrites the graph before it runs."""

    NONE = "none"
    BASIC = "basic"
    EXTENDED = "extended"
    ALL = "all"


class ArenaGrowth(enum.Enum):
    """By how much the memory arena of a GPU grows, in ONNX Runtime's words."""

    NEXT_POWER_OF_TWO = "kNextPowerOfTwo"
    SAME_AS_REQUESTED = "kSameAsRequested"


class ConvolutionSearch(enum.Enum):
    """How cuDNN finds the algorithm of a convolution, in ONNX Runtime's words."""

    EXHAUSTIVE = "EXHAUSTIVE"
    HEURISTIC = "HEURISTIC"
    DEFAULT = "DEFAULT"


@dataclass(frozen=True, slots=True)
class TensorRtSettings:
    """How TensorRT builds its engines; None leaves a choice to it.

    Attributes:
        half_precision: Whether operators may compute in 16 bits.
        workspace_bytes: Most memory that it may try algorithms with.
    """

    half_precision: bool = False
    workspace_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CudaSettings:
    """What applies on a GPU alone; None leaves a choice to ONNX Runtime.

    Attributes:
        memory_limit_bytes: Largest memory arena on the device.
        arena_growth: By how much it grows.
        convolution_search: How the algorithm of a convolution is found.
        copies_in_default_stream: Whether copies share the stream of the computation.
        device: Number of the GPU.
        records_graphs: Whether runs of the model's batch buckets are recorded as CUDA graphs.
        tensorrt: How TensorRT builds; None when nothing was said, or it does not run the model.
    """

    memory_limit_bytes: int | None = None
    arena_growth: ArenaGrowth | None = None
    convolution_search: ConvolutionSearch | None = None
    copies_in_default_stream: bool | None = None
    device: int | None = None
    records_graphs: bool = False
    tensorrt: TensorRtSettings | None = None

    def provider_options(self) -> dict[str, str]:
        """Returns what was chosen as options of the CUDA execution provider."""
        options: dict[str, str] = {}
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        if self.arena_growth is not None:
            options["arena_extend_strategy"] = self.arena_growth.value
        if self.convolution_search is not None:
            options["cudnn_conv_algo_search"] = self.convolution_search.value
        if self.copies_in_default_stream is not None:
            options["do_copy_in_default_stream"] = str(int(self.copies_in_default_stream))
        if self.device is not None:
            options["device_id"] = str(self.device)
        if self.records_graphs:
            options["enable_cuda_graph"] = "1"
        return options


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Parameters of a model's session.

    Attributes:
        intra_op_threads: Threads that share one operator; None for the server's.
        inter_op_threads: Operators that run at a time, where operators run in parallel.
        runs_parallel: Whether operators run in parallel.
        uses_arena: Whether memory of finished operators is kept for the next on the CPU.
        uses_pattern: Whether the memory of a run is planned from the last of the same shapes.
        shrinks_arena: Whether each run gives memory back that it left unused.
        graph_level: How far the graph is rewritten.
        cuda: What applies on a GPU alone; None when nothing was said.
    """

    intra_op_threads: int | None = None
    inter_op_threads: int = 1
    runs_parallel: bool = False
    uses_arena: bool = True
    uses_pattern: bool = True
    shrinks_arena: bool = False
    graph_level: GraphLevel = GraphLevel.ALL
    cuda: CudaSettings | None = None
