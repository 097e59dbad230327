"""Stacks that py-spy sampled, and which layer of the server each of them was in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The first that is in a frame's file tells its layer. What is in none, such as libc and the
# interpreter, works for the frame that called it.
_LAYERS = (
    ("/modelrail_server/", "chassis"),
    ("/modelrail_inference/protocol/", "protocol"),
    ("/modelrail_inference/request/", "protocol"),
    ("/modelrail_inference/scheduling/", "scheduler"),
    ("/modelrail_inference/runtime/", "session"),
    ("/modelrail_inference/", "data plane"),
    ("/prometheus_client/", "metrics"),
    ("/modelrail/oip/", "protobuf"),
    ("/google/", "protobuf"),
    ("/grpc/", "grpcio"),
    ("/onnxruntime/", "onnxruntime"),
    ("/numpy/", "numpy"),
    ("/asyncio/", "asyncio"),
    ("_asyncio", "asyncio"),
    ("/selectors.py", "asyncio"),
)
_FRAME = re.compile(r"(?P<function>.*) \((?P<file>.*?)(?::\d+)?\)$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where time went.

    Attributes:
        layer: Part of the server.
        function: The innermost function that belongs to the layer; of native code without names
            its file.
    """

    layer: str
    function: str


def read(lines: Iterable[str]) -> Counter[Place]:
    """Counts samples by place.

    Args:
        lines: py-spy's raw format: frames from the outermost, parted by `;`, then the count.
    """
    places: Counter[Place] = Counter()
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        places[place(stack.split(";"))] += int(count)
    return places


def place(frames: Sequence[str]) -> Place:
    """Returns where a stack was, from its innermost frame outwards."""
    for frame in reversed(frames):
        found = _FRAME.match(frame)
        if found is None:
            continue
        for part, layer in _LAYERS:
            if part in found["file"]:
                return Place(layer, _name(found["function"], found["file"]))
    return Place("other", frames[-1])


def _name(function: str, file: str) -> str:
    short = file.rpartition("/")[2]
    return f"native code in {short}" if function.startswith("0x") else f"{function} ({short})"
