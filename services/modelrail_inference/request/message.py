"""The messages of the data plane: what a caller sends and what it gets back. No gRPC here.

Nothing changes a message once it is made; the classes are not frozen because that would double the
time to make one, and there are several for each request.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

Parameter = bool | int | float | str | None
"""Value of a request parameter; None when the caller named it and gave no value."""

_BYTES_ELEMENT_BYTES = 96
"""What a short string costs beyond its characters: a pointer, a `str`, and a C++ string."""
_TYPED_ELEMENT_BYTES = 16
"""What a number costs that travelled typed: in the message and in the array."""


@dataclass(frozen=True, slots=True)
class TypedContents:
    """Elements that travelled as protobuf numbers or strings.

    Attributes:
        field: Name of the protocol's field that held them, such as `fp32_contents`.
        values: The elements, in row-major order.
        size_bytes: What they take in the message.
    """

    field: str
    values: Collection[Any]
    size_bytes: int


@dataclass(slots=True)
class InputTensor:
    """One input as it came: nothing in it is checked against a model yet.

    Attributes:
        name: Name of the input.
        datatype: Datatype as the caller wrote it.
        shape: Sizes as the caller wrote them.
        data: Raw bytes, or typed elements, or None where the request held nothing for this input.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview | TypedContents | None

    @property
    def size_bytes(self) -> int:
        """Memory that the input takes once it is decoded, in bytes; for strings an estimate."""
        if self.data is None:
            return 0
        if isinstance(self.data, TypedContents):
            is_text = self.data.field == "bytes_contents"
            each = _BYTES_ELEMENT_BYTES if is_text else _TYPED_ELEMENT_BYTES
            return self.data.size_bytes + each * len(self.data.values)
        if self.datatype != "BYTES":
            return len(self.data)
        # Each element has a length of four bytes, so a shape cannot claim more than there are.
        elements = min(math.prod(self.shape), len(self.data) // 4)
        return len(self.data) + _BYTES_ELEMENT_BYTES * max(0, elements)


@dataclass(slots=True)
class InferenceRequest:
    """One request for one model.

    Attributes:
        model: Name of the model.
        version: Version as the caller wrote it; empty for the latest that is ready.
        id: Chosen by the caller, echoed in the reply; may be empty.
        inputs: The inputs, in the order of the request.
        outputs: Names of the wanted outputs; empty for all of them.
        parameters: Parameters of the request.
        output_parameters: Parameters of single outputs, by output name.
        input_parameters: Parameters of single inputs, by input name.
        message_bytes: What the message takes that all of this was read from; it stays as long as
            the request. 0 where there is none.
    """

    model: str
    version: str = ""
    id: str = ""
    inputs: tuple[InputTensor, ...] = ()
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    output_parameters: Mapping[str, Mapping[str, Parameter]] = field(default_factory=dict)
    input_parameters: Mapping[str, Mapping[str, Parameter]] = field(default_factory=dict)
    message_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Memory that the request takes while it waits and runs, in bytes."""
        return max(self.message_bytes, sum(tensor.size_bytes for tensor in self.inputs))


@dataclass(slots=True)
class OutputTensor:
    """One output as it travels: `raw` is in the protocol's raw encoding.

    For numbers it is a view of what the session returned, so it keeps the whole batch in memory.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview


@dataclass(slots=True)
class InferenceReply:
    """The answer to one request: which version gave it, and the outputs in the order asked for."""

    model: str
    version: int
    id: str
    outputs: tuple[OutputTensor, ...]
