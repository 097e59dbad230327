"""Inputs from a file in the JSON format of perf_analyzer's `--input-data`.

    {"data": [
      {"x": [1, 2, 3, 4]},
      {"x": {"content": [1, 2, 3, 4, 5, 6], "shape": [2, 3]}},
      {"x": {"b64": "AACAPwAAAEA="}},
      {"x": {"content": {"b64": "AACAPwAAAEA="}, "shape": [2]}}
    ]}

Each entry is one item and names every input. Numbers stand row by row, in one list or in nested
ones; `b64` holds the raw bytes of the protocol. `shape` has no batch axis, and is needed where the
model leaves sizes open and the plan does not say them. Entries are sent in turn, over and over; in
a batch, that many consecutive ones. Lists of lists, which perf_analyzer plays as sequences, are
taken as one list; `validation_data` is not looked at.

Source: https://github.com/triton-inference-server/perf_analyzer/blob/main/docs/input_data.md
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelrail.bench.inputs.layout import Layout
from modelrail.bench.plan import PlanError
from modelrail.bench.server.target import InputSpec
from modelrail.tensor import NUMPY_TYPES, TensorError, from_raw, to_raw

__all__ = ["recorded_tensors"]

_SHOWN = 60


def recorded_tensors(path: Path, layout: Layout) -> list[list[tuple[InputSpec, bytes]]]:
    """Reads the inputs of every request that the file holds.

    Returns:
        As many requests as the file has entries, none of which is sent more often than another:
        with a batch of B, request i holds the entries i·B to i·B + B - 1, counted round the file.

    Raises:
        PlanError: The file cannot be read or does not fit the model; the message says where.
    """
    entries = _entries(path)
    items = [
        {spec.name: _tensor(spec, entry, f"{path}: data[{index}]") for spec in layout.inputs}
        for index, entry in enumerate(entries)
    ]
    known = {spec.name for spec in layout.inputs}
    for index, entry in enumerate(entries):
        if unknown := sorted(entry.keys() - known):
            raise PlanError(
                f"{path}: data[{index}]: expected the inputs {', '.join(sorted(known))},"
                f" got also {', '.join(unknown)}"
            )
    size = layout.items
    # After this many requests every entry has been sent equally often, and the file starts over.
    count = len(items) // math.gcd(len(items), size)
    return [
        _joined(layout, items, [(start * size + i) % len(items) for i in range(size)], str(path))
        for start in range(count)
    ]


def _joined(
    layout: Layout,
    items: Sequence[Mapping[str, tuple[tuple[int, ...], bytes]]],
    indices: Sequence[int],
    where: str,
) -> list[tuple[InputSpec, bytes]]:
    tensors = []
    for spec in layout.inputs:
        shapes = {items[index][spec.name][0] for index in indices}
        if len(shapes) > 1:
            raise PlanError(
                f"{where}: data{list(indices)}: {spec.name}: expected one shape for all items of a"
                f" batch, got {', '.join(str(list(shape)) for shape in sorted(shapes))}"
            )
        raw = b"".join(items[index][spec.name][1] for index in indices)
        shape = layout.full_shape(shapes.pop())
        tensors.append((InputSpec(spec.name, spec.datatype, shape), raw))
    return tensors


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: expected JSON: {error}") from error
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list) or not data:
        raise PlanError(f'{path}: expected {{"data": [{{"INPUT": [...]}}, ...]}}')
    flat = [entry for part in data for entry in (part if isinstance(part, list) else [part])]
    for index, entry in enumerate(flat):
        if not isinstance(entry, dict):
            raise PlanError(
                f"{path}: data[{index}]: expected an object of inputs, got {_short(entry)}"
            )
    return flat


def _tensor(spec: InputSpec, entry: Mapping[str, Any], where: str) -> tuple[tuple[int, ...], bytes]:
    """Returns the shape of one item and its raw bytes."""
    if spec.name not in entry:
        got = ", ".join(entry) or "none"
        raise PlanError(f"{where}: expected the input {spec.name}, got {got}")
    where = f"{where}.{spec.name}"
    value = entry[spec.name]
    given = None
    if isinstance(value, dict) and "shape" in value:
        given = value["shape"]
    if isinstance(value, dict) and "content" in value:
        value = value["content"]
    shape = _shape(spec, given, where)
    try:
        if isinstance(value, dict) and set(value) <= {"b64", "shape"} and "b64" in value:
            raw = base64.b64decode(value["b64"], validate=True)
            # Decoded once, so that what does not fit is found here and not by the server.
            if spec.datatype != "BF16":
                from_raw(raw, spec.datatype, shape)
            return shape, raw
        if not isinstance(value, list):
            raise PlanError(f"{where}: expected a list, or b64 or content, got {_short(value)}")
        return shape, _raw(spec, value, shape, where)
    except (TensorError, ValueError, OverflowError, TypeError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"{where}: {error}") from error


def _shape(spec: InputSpec, given: Any, where: str) -> tuple[int, ...]:
    if given is None:
        if -1 in spec.shape:
            raise PlanError(
                f"{where}: expected a shape, because the model takes any size in"
                f" {list(spec.shape)}; got none here and none in the plan"
            )
        return spec.shape
    fits = (
        isinstance(given, list)
        and len(given) == len(spec.shape)
        and all(isinstance(size, int) and size >= 0 for size in given)
        and all(want in {-1, got} for want, got in zip(spec.shape, given, strict=True))
    )
    if not fits:
        raise PlanError(
            f"{where}: expected a shape that fits {list(spec.shape)} (-1: any size),"
            f" got {_short(given)}"
        )
    return tuple(given)


def _raw(spec: InputSpec, values: list[Any], shape: tuple[int, ...], where: str) -> bytes:
    dtype = NUMPY_TYPES.get(spec.datatype)
    if dtype is None:
        raise PlanError(f"{where}: cannot read values of the datatype {spec.datatype}")
    flat = np.array(values, dtype=object).ravel()
    if flat.size != math.prod(shape):
        raise PlanError(
            f"{where}: expected {math.prod(shape)} values for the shape {list(shape)},"
            f" got {flat.size}"
        )
    if dtype.kind == "O":
        return to_raw(flat, spec.datatype)
    with np.errstate(over="ignore"):
        array = flat.astype(dtype)
    # A number too great for its datatype would be sent as infinity, and null as NaN.
    if dtype.kind in "iub":
        fits = np.array_equal(array.astype(object), flat)
    else:
        is_too_great = np.isinf(array.astype("f8")) & np.isfinite(flat.astype("f8"))
        fits = None not in flat.tolist() and not is_too_great.any()
    if not fits:
        raise PlanError(f"{where}: expected {spec.datatype} values, got {_short(values)}")
    return to_raw(array, spec.datatype)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
