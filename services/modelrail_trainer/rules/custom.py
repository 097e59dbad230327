"""Rules about functions of the job's owner, and about models that are imported as they are."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelrail_trainer.rules.violation import Violation, shown
from modelrail_trainer.spec import (
    CustomDataset,
    CustomModel,
    TableDataset,
    TrainingJobSpec,
)

MAX_ENTRY_POINT_CHARACTERS = 200
MAX_ARGUMENTS = 100
_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_ENTRY_POINT = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")


def check_custom(field: str, custom: CustomDataset | CustomModel) -> Iterator[Violation]:
    """Finds what is wrong with a function's name and arguments that can be seen without it."""
    name = custom.entry_point
    words = re.split("[.:]", name)
    if (
        len(name) > MAX_ENTRY_POINT_CHARACTERS
        or not _ENTRY_POINT.fullmatch(name)
        or any(map(keyword.iskeyword, words))
    ):
        yield Violation(
            f"{field}.entry_point",
            "expected module:function, names of Python with dots between those of the module, in "
            f"at most {MAX_ENTRY_POINT_CHARACTERS} characters; got {shown(name)}",
        )
    if len(custom.arguments) > MAX_ARGUMENTS:
        yield Violation(
            f"{field}.arguments",
            f"expected at most {MAX_ARGUMENTS} arguments, got {len(custom.arguments)}",
        )
        return
    yield from _check_finite(f"{field}.arguments", custom.arguments)


def _check_finite(field: str, arguments: Mapping[str, Any]) -> Iterator[Violation]:
    for name, value in arguments.items():
        if not all(map(math.isfinite, _numbers(value))):
            yield Violation(f"{field}[{shown(name)}]", "expected finite numbers")


def _numbers(value: Any) -> Iterator[float]:
    match value:
        case bool() | int():  # as large as it may be
            pass
        case float():
            yield value
        case list():
            for item in value:
                yield from _numbers(item)
        case dict():
            for item in value.values():
                yield from _numbers(item)


def is_import(spec: TrainingJobSpec) -> bool:
    """Whether a custom model is taken as its function made it."""
    return isinstance(spec.model, CustomModel) and spec.epochs == 0


def check_import(spec: TrainingJobSpec) -> Iterator[Violation]:
    """Finds what has no meaning where nothing is trained, and what is missing all the same."""
    nothing = "because epochs is 0, which imports the model as it is"
    if spec.optimizer is not None:
        yield Violation("optimizer", f"expected none, {nothing}; set epochs to train")
    if spec.preprocessing:
        # It would be fitted on rows that the weights have not seen.
        yield Violation("preprocessing", f"expected no steps, {nothing}; put them into the module")
    if spec.loss is None and isinstance(spec.dataset, TableDataset):
        yield Violation(
            "loss", "expected one, which tells whether the target is a class or a number"
        )
