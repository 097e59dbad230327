"""The shape of each input in a request: what the model leaves open, the plan fills in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from modelrail.bench.plan import BenchPlan, PlanError
from modelrail.bench.server.target import InputSpec, Target

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How requests of a plan are shaped for a model."""

    inputs: tuple[InputSpec, ...]
    """Inputs with the shape of one item; -1 where the plan leaves a size open too."""
    batch_size: int | None
    """Items in a request; None for a model without a batch axis."""

    @property
    def items(self) -> int:
        """Items in a request; 1 without a batch axis."""
        return self.batch_size or 1

    def full_shape(self, item_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape that a request states for an input."""
        return item_shape if self.batch_size is None else (self.batch_size, *item_shape)

    @classmethod
    def of(cls, plan: BenchPlan, target: Target) -> Self:
        """Reads the model's shapes and the plan's.

        Raises:
            PlanError: The plan names an input that the model has not, or sizes that it does not
                take.
        """
        known = {spec.name for spec in target.inputs}
        for field, names in (("shapes", plan.shapes), ("ranges", plan.ranges)):
            for name in names:
                if name not in known:
                    raise PlanError(
                        f"{field}: expected an input of {plan.model}"
                        f" ({', '.join(sorted(known))}), got {name}"
                    )
        batched = _has_batch_axis(plan, target)
        largest = target.max_batch_size or None
        size = plan.batch_size or 1
        if batched and largest and size > largest:
            raise PlanError(f"batch_size: {plan.model} takes at most {largest}, got {size}")
        specs = tuple(
            InputSpec(spec.name, spec.datatype, _item_shape(plan, spec, batched=batched))
            for spec in target.inputs
        )
        return cls(specs, size if batched else None)


def _has_batch_axis(plan: BenchPlan, target: Target) -> bool:
    could = bool(target.inputs) and all(spec.shape[:1] == (-1,) for spec in target.inputs)
    if target.max_batch_size is None:
        has = could
    else:
        # A model without a batch axis of the server's may still have one of its own.
        has = could and (target.max_batch_size > 0 or plan.batch_size is not None)
    if plan.batch_size is not None and not has:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in target.inputs)
        raise PlanError(
            f"batch_size: {plan.model} has no batch axis (inputs: {shapes}), got {plan.batch_size}"
        )
    return has


def _item_shape(plan: BenchPlan, spec: InputSpec, *, batched: bool) -> tuple[int, ...]:
    shape = spec.shape[1:] if batched else spec.shape
    given = plan.shapes.get(spec.name)
    if given is None:
        return shape
    if len(given) != len(shape) or any(
        want not in {-1, got} for want, got in zip(shape, given, strict=True)
    ):
        raise PlanError(
            f"shapes: {spec.name}: expected sizes that fit {list(shape)}"
            f"{' (the batch axis left out)' if batched else ''}, got {list(given)}"
        )
    return given
