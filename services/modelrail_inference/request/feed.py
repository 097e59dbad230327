"""The inputs of one request as a session takes them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES, TensorError, from_raw
from modelrail_inference.model.signature import TensorSpec
from modelrail_inference.request.message import InputTensor, TypedContents
from modelrail_inference.request.violations import Violations, sizes

# The field of the protocol's contents that carries each datatype; FP16 and BF16 travel raw only.
CONTENTS_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
FeedInput = tuple[InputTensor, TensorSpec]


class Feed:
    """What a session runs on: the checked inputs of one request.

    Args:
        inputs: The inputs, in the order of the signature.
        outputs: The wanted outputs, in the order of the reply.
        batch_size: Items in the batch; 1 for a model without batch dimension.
        key: Requests with equal keys fit into one batch.
        length: Length of the padded inputs; 0 without padding.
        edge: Length that they are padded to.
        padded_bytes: What they take in a batch then; 0 without padding.
        is_exact: Every input is raw numbers of exactly the right size, as was checked.
        has_flags: An input is BOOL, whose bytes have to be looked at: some are no value of it.
        rejects_nonfinite: Numbers have to be looked at: NaN and infinities are refused.
    """

    __slots__ = (
        "_decoded",
        "batch_size",
        "edge",
        "has_flags",
        "inputs",
        "is_exact",
        "key",
        "length",
        "max_reply_bytes",
        "outputs",
        "padded_bytes",
        "rejects_nonfinite",
    )

    def __init__(
        self,
        inputs: tuple[FeedInput, ...],
        outputs: tuple[TensorSpec, ...],
        batch_size: int,
        key: Hashable = (),
        *,
        length: int = 0,
        edge: int = 0,
        padded_bytes: int = 0,
        is_exact: bool = False,
        has_flags: bool = False,
        rejects_nonfinite: bool = False,
    ) -> None:
        self.is_exact = is_exact
        self.rejects_nonfinite = rejects_nonfinite
        self.has_flags = has_flags
        self.inputs = inputs
        self.outputs = outputs
        self.batch_size = batch_size
        self.key = key
        self.length = length
        self.edge = edge
        self.padded_bytes = padded_bytes
        self.max_reply_bytes = 0
        """Largest reply that the transport carries, without the caller's own texts."""
        self._decoded: dict[int, NDArray[Any]] = {}

    def decode(self) -> None:
        """Decodes strings and typed numbers and looks at what has to be looked at, once.

        Takes seconds for millions, so on a thread.

        Raises:
            InvalidArgument: The content of an input is not what its shape and datatype promise.
        """
        if self._is_as_it_came():
            return
        wrong = Violations()
        for index, (tensor, spec) in enumerate(self.inputs):
            if index in self._decoded or (is_raw(tensor, spec) and not self.rejects_nonfinite):
                continue
            try:
                array = array_of(tensor, spec)
                if self.rejects_nonfinite:
                    _check_finite(array, spec)
                self._decoded[index] = array
            except TensorError as error:
                wrong.add(f"inputs[{index}].contents", f"input '{spec.name}': {error}")
        wrong.check()

    def array(self, index: int) -> NDArray[Any]:
        """Returns one input: `str` objects for BYTES; what is raw is a view. After `decode`."""
        decoded = self._decoded.get(index)
        return decoded if decoded is not None else array_of(*self.inputs[index])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns arrays by input name. Raw numbers and flags are not copied.

        Raises:
            InvalidArgument: The content of an input is not what its shape and datatype promise.
        """
        if self._is_as_it_came():
            return {
                spec.name: np.frombuffer(tensor.data, NUMPY_TYPES[spec.datatype]).reshape(  # type: ignore[arg-type]
                    tensor.shape
                )
                for tensor, spec in self.inputs
            }
        self.decode()
        return {spec.name: self.array(index) for index, (_, spec) in enumerate(self.inputs)}

    def _is_as_it_came(self) -> bool:
        """Whether the bytes of all inputs are their arrays, and nobody has to look at them."""
        return self.is_exact and not (self.has_flags or self.rejects_nonfinite)


def is_raw(tensor: InputTensor, spec: TensorSpec) -> bool:
    """Whether the bytes of an input are its array, whatever they are."""
    return spec.datatype not in ("BYTES", "BOOL") and isinstance(tensor.data, bytes | memoryview)


def array_of(tensor: InputTensor, spec: TensorSpec) -> NDArray[Any]:
    """Returns the array of one input, of the shape that it claims; `str` objects for BYTES.

    Raises:
        TensorError: The content is not what shape and datatype promise.
    """
    if isinstance(tensor.data, TypedContents):
        array = _from_contents(tensor.data, spec, tensor.shape)
    else:
        array = from_raw(tensor.data or b"", spec.datatype, tensor.shape)
        if spec.datatype == "BOOL":
            _check_flags(array)
    return _to_strings(array) if spec.datatype == "BYTES" else array


def check_contents(contents: TypedContents, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Checks field and count of typed elements without touching them.

    Raises:
        TensorError: They are not what shape and datatype promise.
    """
    expected = CONTENTS_FIELDS.get(spec.datatype)
    if expected is None:
        raise TensorError(f"{spec.datatype} travels only in raw_input_contents")
    if contents.field != expected:
        raise TensorError(f"expected {expected} for {spec.datatype}, got {contents.field}")
    count = math.prod(shape)
    if len(contents.values) != count:
        raise TensorError(
            f"expected {count} elements for shape {sizes(shape)}, got {len(contents.values)}"
        )


def _from_contents(
    contents: TypedContents, spec: TensorSpec, shape: tuple[int, ...]
) -> NDArray[Any]:
    # Not through `np.array`, which would make a list of the elements first.
    dtype = NUMPY_TYPES[spec.datatype]
    try:
        return np.fromiter(contents.values, dtype, math.prod(shape)).reshape(shape)
    except OverflowError as error:
        raise TensorError(f"an element is out of the range of {spec.datatype}") from error


def _check_flags(array: NDArray[Any]) -> None:
    """Refuses bytes that are neither 0 nor 1.

    Kernels take them for what they please: the negation of 2 is 3, which is true as well.
    """
    octets = array.view(np.uint8).reshape(-1)
    if octets.max(initial=0) > 1:
        index = int(np.argmax(octets > 1))
        raise TensorError(f"expected 0 or 1 for BOOL, got {octets[index]} at element {index}")


def _check_finite(array: NDArray[Any], spec: TensorSpec) -> None:
    if spec.datatype not in _FLOATS:
        return
    finite = np.isfinite(array).reshape(-1)
    if not finite.all():
        index = int(np.argmin(finite))
        got = array.reshape(-1)[index]
        raise TensorError(f"expected finite numbers, got {got} at element {index}")


def _to_strings(array: NDArray[Any]) -> NDArray[Any]:
    """Returns the elements as `str`, which is what ONNX Runtime's strings are.

    The Python binding would turn `bytes` into the text `b'…'` without a word. The array is changed
    in place, so that millions of elements are not there twice.
    """
    strings = array.reshape(-1)
    for index, element in enumerate(strings):
        try:
            strings[index] = element.decode()
        except UnicodeDecodeError as error:
            raise TensorError(f"string {index} is not valid UTF-8 ({error.reason})") from error
    return strings.reshape(array.shape)
