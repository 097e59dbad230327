"""Values that users type, as the arrays that a model takes; and a model's answers, for people."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from modelrail.cli.command import Failure
from modelrail.cli.console import cell
from modelrail.cli.session import UsageError
from modelrail.tensor import NUMPY_TYPES

_SHOWN_ROWS = 20
_SHOWN_CLASSES = 3
_SHOWN_VALUES = 12

Value = Any


async def read_inputs(given: Sequence[str], document: str | None) -> dict[str, Value]:
    """Returns the value of each input, from `NAME=VALUE` texts and a JSON document.

    A terminal, a pipe or a slow disk keeps it waiting; who waits can be cancelled meanwhile.

    Args:
        given: `NAME=JSON`, `NAME=@FILE.npy` or `NAME=@FILE.json`.
        document: JSON object of inputs, `@FILE`, or `-` for standard input.

    Raises:
        UsageError: A text has another form, or a file cannot be read.
    """
    read: Future[dict[str, Value]] = Future()
    read.set_running_or_notify_cancel()

    def run() -> None:
        try:
            read.set_result(_read(given, document))
        except BaseException as error:  # noqa: BLE001  # whoever waits raises it
            read.set_exception(error)

    # The threads of `asyncio.to_thread` would keep the command from ending until they have read.
    threading.Thread(target=run, name="inputs", daemon=True).start()
    return await asyncio.wrap_future(read)


def _read(given: Sequence[str], document: str | None) -> dict[str, Value]:
    values: dict[str, Value] = {}
    if document is not None:
        content = _json(_text(document), "--input-json")
        if not isinstance(content, dict):
            raise UsageError('--input-json: expected an object like {"x": [[1.0]]}')
        values.update(content)
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--input {text}: expected NAME=VALUE")
        if name in values:
            raise UsageError(f"--input {name}: expected one value, got several")
        values[name] = _value(name, value)
    return values


def _value(name: str, text: str) -> Value:
    if not text.startswith("@"):
        return _json(text, f"--input {name}")
    path = Path(text[1:])
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return _json(path.read_text(), str(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"--input {name}: {error}") from error


def _text(source: str) -> str:
    try:
        if source == "-":
            # Not `sys.stdin` itself: Python cannot end while a thread reads from it.
            with open(sys.stdin.fileno(), encoding=sys.stdin.encoding, closefd=False) as file:
                return file.read()
        if source.startswith("@"):
            return Path(source[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--input-json: {error}") from error
    return source


def _json(text: str, where: str) -> Value:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{where}: expected JSON, @FILE.npy or @FILE.json: {error}") from error


def as_array(name: str, value: Value, datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """Returns a value as an array of the model's type.

    Where only axes of size 1 or any size are missing in front, they are added.

    Args:
        name: Name of the input, for messages.
        value: Numbers, text, lists of them, or an array.
        datatype: The protocol's name of the type.
        shape: Sizes that the model takes; -1 for any.

    Raises:
        Failure: The value does not fit; the message says what was expected and what was got.
    """
    dtype = NUMPY_TYPES.get(datatype)
    if dtype is None:
        raise Failure(f"input {name}: cannot make {datatype} values here")
    try:
        array = np.asarray(value)
        if datatype == "BYTES":
            array = np.asarray(value, dtype=object)
        elif array.dtype.kind in "OUS":
            raise Failure(f"input {name}: expected {datatype} numbers, got {_short(value)}")
        else:
            array = _exact(name, array, dtype, datatype)
    except ValueError as error:
        raise Failure(
            f"input {name}: expected a full array, got {_short(value)}: {error}"
        ) from None
    missing = len(shape) - array.ndim
    if missing > 0 and all(size in {-1, 1} for size in shape[:missing]):
        array = array.reshape((1,) * missing + array.shape)
    fits = len(shape) == array.ndim and all(
        want in {-1, got} for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise Failure(
            f"input {name}: expected shape {list(shape)} (-1: any size), got {list(array.shape)}"
        )
    return array


def _exact(name: str, array: NDArray[Any], dtype: np.dtype[Any], datatype: str) -> NDArray[Any]:
    converted = array.astype(dtype)
    if dtype.kind in "iub" and not np.array_equal(converted, array):
        raise Failure(f"input {name}: expected {datatype} values, got {_short(array.tolist())}")
    return converted


def _short(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def output_table(name: str, values: NDArray[Any], labels: Sequence[str]) -> Table:
    """Returns a table with a row for each row of an output: its best classes, or its numbers."""
    is_classes = bool(labels) and values.ndim == 2 and values.shape[1] == len(labels)
    table = Table("row", box=None, pad_edge=False)
    table.add_column(cell(name))
    rows = values if values.ndim else values.reshape(1)
    for index, row in enumerate(rows[:_SHOWN_ROWS]):
        table.add_row(str(index), cell(_classes(row, labels) if is_classes else _numbers(row)))
    if len(rows) > _SHOWN_ROWS:
        table.add_row("…", f"{len(rows) - _SHOWN_ROWS} more; --json shows all")
    return table


def _classes(row: NDArray[Any], labels: Sequence[str]) -> str:
    best = np.argsort(row)[::-1][:_SHOWN_CLASSES]
    return "  ".join(f"{labels[index]}: {row[index]:.4f}" for index in best)


def _numbers(row: NDArray[Any]) -> str:
    flat = np.ravel(row)
    shown = ", ".join(_number(value) for value in flat[:_SHOWN_VALUES])
    return shown + (f", … ({flat.size} values)" if flat.size > _SHOWN_VALUES else "")


def _number(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return f"{value:.6g}" if isinstance(value, np.floating) else str(value)


def plain(values: NDArray[Any]) -> Any:
    """Returns an array as lists that JSON can hold."""
    if values.dtype == object:
        return [
            plain(row) if isinstance(row, np.ndarray) else row.decode(errors="replace")
            for row in values
        ]
    return values.astype(np.float64).tolist() if values.dtype.kind == "V" else values.tolist()


def labels_of(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the labels of each output from the parameters of a model's configuration.

    The model file carries them under `modelrail.output_spec`; another model simply has none.
    """
    parameter = parameters.get("modelrail.output_spec")
    try:
        entries = json.loads(parameter.string_value) if parameter else []
    except ValueError:
        return {}
    if isinstance(entries, dict):
        entries = [
            {"name": name, **entry} for name, entry in entries.items() if isinstance(entry, dict)
        ]
    return {
        entry["name"]: [str(label) for label in entry["labels"]]
        for entry in entries
        if isinstance(entry, dict) and entry.get("labels") and entry.get("name")
    }
