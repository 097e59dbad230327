"""Compares what a configuration declares with what the graph holds."""

from __future__ import annotations

from modelrail_inference.model.definition import LoadError, ModelSettings
from modelrail_inference.model.signature import DYNAMIC, Signature, TensorSpec


def served_signature(graph: Signature, settings: ModelSettings, max_batch_size: int) -> Signature:
    """Returns what is served, after comparing the graph with the configuration.

    Raises:
        LoadError: The configuration says something that the graph does not hold.
    """
    if max_batch_size > 0 and not graph.batchable():
        fixed = next(
            (
                spec
                for spec in (*graph.inputs, *graph.outputs)
                if not spec.shape or spec.shape[0] != DYNAMIC
            ),
            None,
        )
        raise LoadError(
            f"max_batch_size is {max_batch_size}, but "
            + (
                f"'{fixed.name}' has shape {list(fixed.shape)} without a dynamic first dimension"
                if fixed
                else "the model has no inputs"
            )
        )
    inputs = _with_mask(settings, graph)
    return Signature(
        inputs=_declared("input", graph.inputs, inputs, complete=True),
        outputs=_declared("output", graph.outputs, settings.outputs, complete=False),
    )


def _with_mask(settings: ModelSettings, graph: Signature) -> tuple[TensorSpec, ...]:
    """Returns the declared inputs; the mask, which callers do not see, can be left out there."""
    mask = settings.padding.mask if settings.padding else None
    if not settings.inputs or any(spec.name == mask for spec in settings.inputs):
        return settings.inputs
    return (*settings.inputs, *(spec for spec in graph.inputs if spec.name == mask))


def _declared(
    kind: str, graph: tuple[TensorSpec, ...], declared: tuple[TensorSpec, ...], *, complete: bool
) -> tuple[TensorSpec, ...]:
    if not declared:
        return graph
    found = {spec.name: spec for spec in graph}
    names = [spec.name for spec in declared]
    unknown = [name for name in names if name not in found]
    if unknown or (complete and len(set(names)) != len(found)) or len(set(names)) != len(names):
        raise LoadError(
            f"the configuration declares the {kind}s {names}, but the graph has {list(found)}"
        )
    for spec in declared:
        actual = found[spec.name]
        if spec.datatype != actual.datatype:
            raise LoadError(
                f"the configuration declares {kind} '{spec.name}' as {spec.datatype}, but the "
                f"graph has {actual.datatype}"
            )
        if len(spec.shape) != len(actual.shape) or any(
            DYNAMIC not in (a, b) and a != b for a, b in zip(spec.shape, actual.shape, strict=True)
        ):
            raise LoadError(
                f"the configuration declares {kind} '{spec.name}' with shape {list(spec.shape)}, "
                f"but the graph has {list(actual.shape)}"
            )
    return declared
