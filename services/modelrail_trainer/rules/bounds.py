"""What the fields of a description may be, written where they are declared.

A description is a frozen dataclass of plain values. A field of type `Annotated[float, Real(…)]` is
checked by `violations_of`; nothing else has to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Annotated, Any, Protocol, TypeVar, get_type_hints

from modelrail_trainer.rules.violation import Violation, nothing_set, real, whole, widths

Description = TypeVar("Description")


class Bound(Protocol):
    """What a value may be."""

    def violations(self, field: str, value: Any) -> Iterator[Violation]:
        """Finds why a field cannot have a value."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number in [least, most]."""

    least: int
    most: int | None = None

    def violations(self, field: str, value: int) -> Iterator[Violation]:
        """Finds why a field cannot have a value."""
        return whole(field, value, self.least, self.most)


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number in [least, most] ∩ (above, below); `expected` says so in words."""

    expected: str
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def violations(self, field: str, value: float) -> Iterator[Violation]:
        """Finds why a field cannot have a value."""
        return real(
            field,
            value,
            self.expected,
            least=self.least,
            most=self.most,
            above=self.above,
            below=self.below,
        )


@dataclass(frozen=True, slots=True)
class Widths:
    """From 1 to `most_layers` whole numbers in [1, most_units]; `noun` says of what."""

    noun: str
    most_layers: int
    most_units: int

    def violations(self, field: str, value: tuple[int, ...]) -> Iterator[Violation]:
        """Finds why a field cannot have a value."""
        return widths(field, value, self.noun, self.most_layers, self.most_units)


Probability = Annotated[float, Real("a probability in [0, 1)", least=0.0, below=1.0)]
Fraction = Annotated[float, Real("a fraction in [0, 1)", least=0.0, below=1.0)]


def violations_of(field: str, description: object) -> Iterator[Violation]:
    """Finds which fields of a description are out of their bounds, in the order of the fields.

    Args:
        field: The description's own path, as `optimizer.sgd`.
        description: What is checked.
    """
    for name, hint in get_type_hints(type(description), include_extras=True).items():
        for bound in getattr(hint, "__metadata__", ()):
            yield from bound.violations(f"{field}.{name}", getattr(description, name))


def zeros_replaced(description: Description) -> Description:
    """Returns a description in which each zero has become the default of its field. Idempotent.

    The wire does not tell a field that was not set from one that is zero.
    """
    defaults = {
        field.name: field.default
        for field in fields(description)  # type: ignore[arg-type]  # a dataclass
        if field.default is not MISSING and not getattr(description, field.name)
    }
    return replace(description, **defaults)  # type: ignore[type-var]


def name_of(kinds: Mapping[str, type], description: object) -> str:
    """Returns the name under which a description's class stands among its kinds."""
    return next(name for name, kind in kinds.items() if kind is type(description))


def violations_of_one(
    field: str, kinds: Mapping[str, type], description: object | None
) -> Iterator[Violation]:
    """Finds what is wrong with a field that is a description of one of several kinds.

    Args:
        field: Its path, as `optimizer`.
        kinds: Classes by their names in the field.
        description: None: nothing was set.
    """
    if description is None:
        yield nothing_set(field, *kinds)
    else:
        yield from violations_of(f"{field}.{name_of(kinds, description)}", description)
