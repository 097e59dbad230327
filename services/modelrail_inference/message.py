"""The messages of the data plane: what a caller sends and what it gets back. No gRPC here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

Parameter = bool | int | float | str | None
"""Value of a request parameter; None when the caller named it and gave no value."""


@dataclass(frozen=True, slots=True)
class TypedContents:
    """Elements that travelled as protobuf numbers or strings.

    Attributes:
        field: Name of the protocol's field that held them, such as `fp32_contents`.
        values: The elements, in row-major order.
    """

    field: str
    values: list[Any]


@dataclass(frozen=True, slots=True)
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
    data: bytes | TypedContents | None


@dataclass(frozen=True, slots=True)
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
    """

    model: str
    version: str = ""
    id: str = ""
    inputs: tuple[InputTensor, ...] = ()
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    output_parameters: Mapping[str, Mapping[str, Parameter]] = field(default_factory=dict)
    input_parameters: Mapping[str, Mapping[str, Parameter]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Memory that the inputs hold while the request waits, in bytes; 8 a typed element."""
        return sum(
            len(tensor.data)
            if isinstance(tensor.data, bytes)
            else 8 * len(tensor.data.values)
            if tensor.data is not None
            else 0
            for tensor in self.inputs
        )


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output; the array is `str` or `bytes` objects for BYTES."""

    name: str
    datatype: str
    array: NDArray[Any]


@dataclass(frozen=True, slots=True)
class InferenceReply:
    """The answer to one request: which version gave it, and the outputs in the order asked for."""

    model: str
    version: int
    id: str
    outputs: tuple[OutputTensor, ...]
