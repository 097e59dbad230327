"""Reference rows: what clients send, and what PyTorch makes of it.

The process of a job leaves some beside its result, so that another process can see without torch,
and without the data, that the files compute this. They are raw rows of the data, so they are not
published, and they go with the job's directory.

The file is a safetensors file, which is read without running anything in it. Its tensors are named
`GRAPH/CASE/KIND/NAME`. Texts, which it has no type for, are their bytes in UTF-8 and where each of
them ends.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from modelrail_trainer.failure import GateFailed
from modelrail_trainer.handover.artifact import REFERENCE_NAME

MAX_GRAPH_BYTES = 32 << 20
"""About what the rows of one graph take; but one row of each case is always kept."""
_INPUT, _TEXT, _ENDS, _OUTPUT = "input", "text", "ends", "output"

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ReferenceCase:
    """Some rows of one shape.

    Attributes:
        inputs: As a client sends them, by name: numbers [N, …], or texts, objects [N, 1].
        outputs: What PyTorch makes of them, by name, float32 [N, …].
    """

    inputs: Mapping[str, Values]
    outputs: Mapping[str, Values]

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))

    def head(self, rows: int) -> ReferenceCase:
        """Returns the first rows."""
        return ReferenceCase(
            {name: values[:rows] for name, values in self.inputs.items()},
            {name: values[:rows] for name, values in self.outputs.items()},
        )


Reference = Mapping[str, Sequence[ReferenceCase]]
"""The cases of each graph, by the name of its file."""


def save_reference(reference: Reference, directory: Path) -> None:
    """Writes the cases into the job's directory, and to the disk. Of too many rows the first."""
    tensors: dict[str, Values] = {}
    for graph, cases in reference.items():
        for place, case in enumerate(cases):
            for name, values in _bounded(case, MAX_GRAPH_BYTES // len(cases)).items():
                tensors[f"{graph}/{place}/{name}"] = np.ascontiguousarray(values)
    with (directory / REFERENCE_NAME).open("wb") as file:
        file.write(safetensors.numpy.save(tensors))
        file.flush()
        os.fsync(file.fileno())


def load_reference(directory: Path) -> Reference:
    """Reads what `save_reference` wrote.

    Raises:
        GateFailed: There is none, or it is something else.
    """
    try:
        tensors = safetensors.numpy.load((directory / REFERENCE_NAME).read_bytes())
        parts: dict[tuple[str, int], dict[str, Values]] = defaultdict(dict)
        for key, values in tensors.items():
            graph, place, rest = key.split("/", 2)
            parts[graph, int(place)][rest] = values
        reference: dict[str, list[ReferenceCase]] = defaultdict(list)
        for (graph, _), values_of in sorted(parts.items()):
            reference[graph].append(_case(values_of))
    except FileNotFoundError as error:
        raise GateFailed(f"the job left no reference rows ({REFERENCE_NAME})") from error
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise GateFailed(f"{REFERENCE_NAME} holds no reference rows: {error}") from error
    return reference


def _bounded(case: ReferenceCase, most_bytes: int) -> dict[str, Values]:
    """Returns the tensors of a case, of so many rows as there is room for."""
    size = sum(values.nbytes for values in _tensors(case).values())
    rows = len(case)
    if size > most_bytes:
        rows = max(1, rows * most_bytes // size)
    return _tensors(case.head(rows))


def _tensors(case: ReferenceCase) -> dict[str, Values]:
    tensors = {f"{_OUTPUT}/{name}": values for name, values in case.outputs.items()}
    for name, values in case.inputs.items():
        if values.dtype != object:
            tensors[f"{_INPUT}/{name}"] = values
            continue
        contents = [text.encode() for text in values.ravel()]
        tensors[f"{_TEXT}/{name}"] = np.frombuffer(b"".join(contents), np.uint8)
        tensors[f"{_ENDS}/{name}"] = np.cumsum([len(content) for content in contents])
    return tensors


def _case(tensors: Mapping[str, Values]) -> ReferenceCase:
    inputs: dict[str, Values] = {}
    outputs: dict[str, Values] = {}
    for key, values in tensors.items():
        kind, name = key.split("/", 1)
        match kind:
            case "input":
                inputs[name] = values
            case "text":
                inputs[name] = _texts(values.tobytes(), tensors[f"{_ENDS}/{name}"])
            case "output":
                if values.dtype != np.float32:
                    raise ValueError(f"output {name[:80]!r}: expected float32, got {values.dtype}")
                outputs[name] = values
            case "ends":
                pass
            case _:
                raise ValueError(f"{key[:80]!r} is no part of a case")
    counts = {values.shape[:1] for values in [*inputs.values(), *outputs.values()]}
    if not (inputs and outputs) or len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError("a case has inputs and outputs for the same rows, one or more")
    return ReferenceCase(inputs, outputs)


def _texts(content: bytes, ends: Values) -> Values:
    """Returns texts [N, 1]."""
    starts = [0, *ends.tolist()[:-1]]
    texts = [content[start:end].decode() for start, end in zip(starts, ends.tolist(), strict=True)]
    return np.array(texts, object).reshape(-1, 1)
