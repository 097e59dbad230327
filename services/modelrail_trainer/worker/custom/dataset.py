"""Rows that a function of the job's owner made, held to their contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from modelrail_trainer.failure import UserCodeError
from modelrail_trainer.rules.table import GRAPH_PREFIXES, OUTPUT_NAMES
from modelrail_trainer.spec import CustomDataset, Task
from modelrail_trainer.user_code import Array, CustomData
from modelrail_trainer.worker.custom.code import UserCode
from modelrail_trainer.worker.part import Part

MAX_OUTPUTS = 65_536
_MAX_MEANING_CHARACTERS = 256
_INPUT_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]{0,127}")
_FIELDS = tuple(field.name for field in fields(CustomData))


class CustomRows:
    """What a data function returned, checked and in the types that training uses.

    Attributes:
        task: Classes or values.
        parts: All rows, or those of training, validation and test where they came divided.
        labels: Names of the classes; empty for values.
        outputs: Number of classes or of values for a row.
        tokens: Size of the vocabulary; 0 for rows of numbers.
        input_name: Of the graph.
        meaning: Of the input.
    """

    def __init__(self, name: str, returned: object) -> None:
        """Checks what the function called `name` returned.

        Raises:
            UserCodeError: It breaks the contract of `CustomData`.
        """
        self._name = name
        data = self._custom_data(returned)
        self.input_name, self.meaning = data.input_name, data.meaning
        self._check_texts(data)
        self.tokens = self._whole("tokens", data.tokens)
        if self.tokens == 1:
            raise self._wrong("tokens", "0, or at least 2 with the padding", "1")
        divided = [data.validation, data.test]
        if (data.validation is None) != (data.test is None):
            raise self._wrong("validation, test", "both or none of them", "one")
        pairs = {"": (data.inputs, data.targets)}
        if data.validation is not None:
            for part, pair in zip(("validation", "test"), divided, strict=True):
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    raise self._wrong(part, "a pair of inputs and targets", _kind(pair))
                pairs[part] = (pair[0], pair[1])
        self.parts = tuple(self._part(part, *pair) for part, pair in pairs.items())
        first = self.parts[0]
        self.task = Task.CLASSIFICATION if first.targets.dtype == np.int64 else Task.REGRESSION
        for part, other in zip(pairs, self.parts, strict=True):
            for field, mine, theirs in (
                ("inputs", other.inputs, first.inputs),
                ("targets", other.targets, first.targets),
            ):
                if mine.dtype != theirs.dtype or mine.shape[1:] != theirs.shape[1:]:
                    wanted = f"as in training, {theirs.dtype} {['rows', *theirs.shape[1:]]}"
                    raise self._wrong(_field(part, field), wanted, _kind(mine))
        self.labels = self._labels(data.labels, pairs)
        self.outputs = len(self.labels) or first.targets.shape[1]
        if self.outputs > MAX_OUTPUTS:
            raise self._wrong("targets", f"at most {MAX_OUTPUTS} values a row", str(self.outputs))

    def _custom_data(self, returned: object) -> CustomData:
        if isinstance(returned, CustomData):
            return returned
        if not isinstance(returned, Mapping):
            wanted = "a modelrail_trainer.user_code.CustomData or a mapping with its fields"
            raise UserCodeError(f"{self._name}: expected {wanted}, got a {_kind(returned)}")
        strange = [repr(key)[:80] for key in returned if key not in _FIELDS]
        missing = [key for key in ("inputs", "targets") if key not in returned]
        if strange or missing:
            raise UserCodeError(
                f"{self._name}: expected inputs and targets, and of the rest only "
                f"{', '.join(_FIELDS[2:])}; "
                + (f"got {', '.join(strange)}" if strange else f"{', '.join(missing)} is missing")
            )
        return CustomData(**returned)

    def _check_texts(self, data: CustomData) -> None:
        name = data.input_name
        if (
            not isinstance(name, str)
            or not _INPUT_NAME.fullmatch(name)
            or name in OUTPUT_NAMES
            or name.startswith(GRAPH_PREFIXES)
        ):
            wanted = f"a name like those of Python, none of {', '.join(sorted(OUTPUT_NAMES))}"
            raise self._wrong("input_name", wanted, repr(name)[:80])
        if not isinstance(data.meaning, str) or len(data.meaning) > _MAX_MEANING_CHARACTERS:
            wanted = f"a text of at most {_MAX_MEANING_CHARACTERS} characters"
            raise self._wrong("meaning", wanted, repr(data.meaning)[:80])

    def _part(self, part: str, inputs: object, targets: object) -> Part:
        checked = self._inputs(_field(part, "inputs"), inputs)
        field = _field(part, "targets")
        values = self._array(field, targets, ("float32", "int64", "uint8"))
        if values.dtype == np.float32:
            if values.ndim == 1:
                values = values.reshape(-1, 1)
            if values.ndim != 2 or values.shape[1] < 1:
                raise self._wrong(field, "float32 [rows] or [rows, outputs]", _kind(targets))
            self._check_finite(field, values)
        elif values.ndim != 1:
            raise self._wrong(field, "class numbers [rows]", _kind(targets))
        if len(values) != len(checked):
            raise self._wrong(field, f"{len(checked)} rows as in the inputs", str(len(values)))
        classes = values.dtype != np.float32
        return Part(_owned(checked), _owned(values.astype(np.int64) if classes else values))

    def _inputs(self, field: str, inputs: object) -> Array:
        array = self._array(field, inputs, ("float32", "int64", "uint8"))
        if array.ndim < 2 or 0 in array.shape:
            wanted = "[rows, …] with at least one row and one number in it"
            raise self._wrong(field, wanted, _kind(inputs))
        if self.tokens:
            if array.dtype == np.float32 or array.ndim != 2:
                raise self._wrong(field, "tokens, int64 or uint8 [rows, length]", _kind(inputs))
            lowest, highest = int(array.min()), int(array.max())
            if lowest < 0 or highest >= self.tokens:
                wanted = f"tokens from 0 to {self.tokens - 1}"
                raise self._wrong(field, wanted, f"some from {lowest} to {highest}")
            return array.astype(np.int64)
        if array.dtype == np.int64:
            wanted = "float32 or uint8 numbers, or tokens beside int64 inputs"
            raise self._wrong(field, wanted, "int64 without tokens")
        numbers = array.astype(np.float32)
        self._check_finite(field, numbers)
        return numbers

    def _array(self, field: str, value: object, dtypes: tuple[str, ...]) -> Array:
        wanted = f"a NumPy array of {', '.join(dtypes)}"
        if not isinstance(value, np.ndarray) or value.dtype.name not in dtypes:
            raise self._wrong(field, wanted, _kind(value))
        # Of another byte order it would be float32 by name, and unequal to it.
        return value.astype(value.dtype.newbyteorder("="), copy=False)

    def _check_finite(self, field: str, array: Array) -> None:
        if not (finite := np.isfinite(array)).all():
            place = [int(index) for index in np.argwhere(~finite)[0]]
            raise self._wrong(field, "finite numbers", f"{array[tuple(place)]} at {place}")

    def _labels(self, given: object, pairs: Mapping[str, object]) -> tuple[str, ...]:
        if isinstance(given, str) or not all(isinstance(label, str) for label in _listed(given)):
            raise self._wrong("labels", "a sequence of texts", _kind(given))
        labels = tuple(_listed(given))
        if self.task is Task.REGRESSION:
            if labels:
                raise self._wrong("labels", "none beside float32 targets", str(len(labels)))
            return ()
        highest = max(int(part.targets.max()) for part in self.parts)
        if not labels:
            if highest >= MAX_OUTPUTS:
                wanted = f"class numbers below {MAX_OUTPUTS}"
                raise self._wrong("targets", wanted, str(highest))
            labels = tuple(str(number) for number in range(max(2, highest + 1)))
        if not 2 <= len(labels) <= MAX_OUTPUTS or len(set(labels)) < len(labels) or "" in labels:
            wanted = f"from 2 to {MAX_OUTPUTS} different texts that are not empty"
            raise self._wrong("labels", wanted, f"{len(labels)}, {len(set(labels))} different")
        for name, part in zip(pairs, self.parts, strict=True):
            lowest, highest = int(part.targets.min()), int(part.targets.max())
            if lowest < 0 or highest >= len(labels):
                wanted = f"class numbers from 0 to {len(labels) - 1}"
                raise self._wrong(
                    _field(name, "targets"), wanted, f"some from {lowest} to {highest}"
                )
        return labels

    def _whole(self, field: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise self._wrong(field, "a whole number from 0", repr(value)[:80])
        return int(value)

    def _wrong(self, field: str, expected: str, got: str) -> UserCodeError:
        return UserCodeError(f"{self._name}: {field}: expected {expected}; got {got}")


def load_custom(code: UserCode, dataset: CustomDataset, *, seed: int) -> CustomRows:
    """Calls the data function of a job.

    Raises:
        UserCodeError: It raised an exception, or what it returned breaks its contract.
    """
    returned = code.call(dataset.entry_point, seed=seed, **dataset.arguments)
    return CustomRows(dataset.entry_point, returned)


def _field(part: str, field: str) -> str:
    return f"{part} {field}" if part else field


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} {list(value.shape)}"
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def _owned(array: Array) -> Array:
    """Returns an array that torch can use in place; a copy, where this one is not such an array."""
    return np.require(array, requirements=["C", "W"])
