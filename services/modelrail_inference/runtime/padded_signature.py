"""Compares what a configuration says about lengths with the graph."""

from __future__ import annotations

from modelrail_inference.repository.batching import Padding
from modelrail_inference.repository.definition import LoadError
from modelrail_inference.signature import DYNAMIC, Signature, TensorSpec


def split_mask(
    signature: Signature, padding: Padding | None
) -> tuple[Signature, TensorSpec | None]:
    """Returns what callers see, and the input that the server fills.

    Args:
        signature: Inputs and outputs of the graph, with the batch dimension.
        padding: How requests of different lengths get into one batch; None where they do not.

    Raises:
        LoadError: The configuration names an input, output or axis that the graph does not have,
            or one that cannot be of any length.
    """
    if padding is None:
        return signature, None
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    for name, padded in padding.inputs.items():
        _check_axis(f"inputs.{name}", inputs.get(name), padded.axis, list(inputs))
    for name, axis in padding.outputs.items():
        _check_axis(f"outputs.{name}", outputs.get(name), axis, list(outputs))
    if padding.mask is None:
        return signature, None
    mask = inputs.get(padding.mask)
    if mask is None or padding.mask in padding.inputs:
        raise _wrong(
            "mask", f"expected an input that is not padded, of {list(inputs)}, got '{padding.mask}'"
        )
    if mask.shape != (DYNAMIC, DYNAMIC) or mask.datatype == "BYTES":
        raise _wrong(
            "mask",
            f"expected numbers of shape [batch, length], got {mask.datatype} {list(mask.shape)}",
        )
    visible = tuple(spec for spec in signature.inputs if spec is not mask)
    return Signature(visible, signature.outputs), mask


def _check_axis(field: str, spec: TensorSpec | None, axis: int, names: list[str]) -> None:
    if spec is None:
        raise _wrong(field, f"expected one of {names}")
    if axis >= len(spec.shape) or spec.shape[axis] != DYNAMIC:
        raise _wrong(
            field, f"expected an axis of any length, got {axis} of shape {list(spec.shape)}"
        )


def _wrong(field: str, description: str) -> LoadError:
    return LoadError(f"padding.{field}: {description}")
