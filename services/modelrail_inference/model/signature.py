"""What goes into a model and what comes out: names, datatypes and shapes."""

from __future__ import annotations

from dataclasses import dataclass

DYNAMIC = -1
"""Size of a dimension that each request chooses."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output, as metadata shows them.

    Attributes:
        name: Name in the graph.
        datatype: Name of the type in the Open Inference Protocol, such as `FP32`.
        shape: Sizes from the outermost dimension to the innermost, with the batch dimension where
            the model has one; `DYNAMIC` where each request chooses.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` fits."""
        return len(shape) == len(self.shape) and all(
            expected in (DYNAMIC, size) for expected, size in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs in the order of the graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def batchable(self) -> bool:
        """Whether every input and output has a first dimension that each request chooses."""
        tensors = (*self.inputs, *self.outputs)
        return bool(self.inputs) and all(
            bool(tensor.shape) and tensor.shape[0] == DYNAMIC for tensor in tensors
        )
