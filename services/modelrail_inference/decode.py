"""From an untrusted request to the inputs of a session: every rule that a request can break.

What the rules do not touch: NaN and infinities pass, and so do dimensions of size 0, except that a
batch has at least one item.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail.tensor import NUMPY_TYPES, TensorError, from_raw
from modelrail_inference.message import InferenceRequest, InputTensor, Parameter, TypedContents
from modelrail_inference.repository.definition import LoadedModel
from modelrail_inference.signature import TensorSpec
from modelrail_server.errors import FieldViolation, InvalidArgument, Unimplemented

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
_SHOWN = 60


_FeedInput = tuple[InputTensor, TensorSpec]


@dataclass(frozen=True, slots=True)
class Feed:
    """What a session runs on.

    Attributes:
        inputs: The checked inputs.
        outputs: The wanted outputs, in the order of the reply.
        batch_size: Items in the batch; 1 for a model without batch dimension.
    """

    inputs: tuple[_FeedInput, ...]
    outputs: tuple[TensorSpec, ...]
    batch_size: int

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns arrays by input name; `str` objects for BYTES. Raw numbers are not copied.

        Takes seconds for millions of strings, so it is called on a thread.

        Raises:
            InvalidArgument: The content of an input is not what its shape and datatype promise.
        """
        wrong = _Violations()
        arrays: dict[str, NDArray[Any]] = {}
        for index, (tensor, spec) in enumerate(self.inputs):
            try:
                arrays[spec.name] = _array(tensor, spec)
            except TensorError as error:
                wrong.add(f"inputs[{index}].contents", f"input '{spec.name}': {error}")
        wrong.check()
        return arrays


class _Violations:
    """Collects every wrong field, so that a caller mends all of them at once."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        self.found.append(FieldViolation(field, description))

    def check(self) -> None:
        if self.found:
            message = "; ".join(v.description for v in self.found[:3])
            if len(self.found) > 3:
                message += f"; and {len(self.found) - 3} more"
            raise InvalidArgument(message, violations=self.found)


def check_parameters(request: InferenceRequest) -> None:
    """Checks the reserved parameters; all others pass, as nothing here reads them.

    `timeout` and `priority` are checked and have no effect. Triton too ignores them unless the
    model's queue policy lets requests override its timeout (`allow_timeout_override`) or has
    priority levels; both belong to dynamic batching, which a configuration cannot ask for here.
    What bounds a request is the deadline of its call.

    Raises:
        InvalidArgument: A reserved parameter has the wrong type or is unknown.
        Unimplemented: The request asks for a feature that this server does not offer.
    """
    wrong = _Violations()
    for key, value in request.parameters.items():
        field = f"parameters[{_shown(key)}]"
        expected = _parameter_error(key, value)
        if expected:
            wrong.add(field, f"parameter '{_shown(key)}': {expected}")
    wrong.check()
    sequence = request.parameters.get("sequence_id", 0)
    if sequence not in (0, ""):
        raise Unimplemented(
            "sequence batching is not offered, got a sequence_id", reason="SEQUENCE_UNSUPPORTED"
        )
    for group in (request.input_parameters, request.output_parameters):
        for name, parameters in group.items():
            if any(key.startswith("shared_memory_") for key in parameters):
                raise Unimplemented(
                    f"'{_shown(name)}' asks for shared memory, which this server does not offer",
                    reason="SHARED_MEMORY_UNSUPPORTED",
                )
    for name, parameters in request.output_parameters.items():
        if "classification" in parameters:
            raise Unimplemented(
                f"output '{_shown(name)}' asks for classification, which is not offered",
                reason="CLASSIFICATION_UNSUPPORTED",
            )


def _parameter_error(key: str, value: Parameter) -> str | None:
    """Returns what is wrong with a parameter, or None."""
    if value is None:
        return "expected a value, got none"
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if key == "sequence_id":
        ok, expected = is_int or isinstance(value, str), "an integer or a string"
    elif key in ("sequence_start", "sequence_end", "binary_data_output"):
        ok, expected = isinstance(value, bool), "a bool"
    elif key in ("priority", "timeout"):
        ok, expected = is_int and int(value) >= 0, "an integer from 0"
    elif key == "triton_enable_empty_final_response":
        ok, expected = isinstance(value, bool), "a bool"
    elif key.startswith("triton_"):
        return "names with the prefix 'triton_' are reserved, and this one is unknown"
    else:
        return None
    return None if ok else f"expected {expected}, got {value!r:.{_SHOWN}}"


def check(request: InferenceRequest, model: LoadedModel) -> Feed:
    """Checks everything about a request but the elements of its inputs, which it does not touch.

    Raises:
        InvalidArgument: An input or output is missing, unknown, named twice, or has the wrong
            datatype, shape or number of bytes. Every wrong field is among the violations.
    """
    wrong = _Violations()
    _check_input_names(request, model, wrong)
    outputs = _wanted_outputs(request, model, wrong)
    wrong.check()
    specs = {spec.name: spec for spec in model.signature.inputs}
    inputs = tuple((tensor, specs[tensor.name]) for tensor in request.inputs)
    for index, (tensor, spec) in enumerate(inputs):
        _check_input(f"inputs[{index}]", tensor, spec, model, wrong)
    wrong.check()
    batch_size = _batch_size(request, model, wrong)
    wrong.check()
    return Feed(inputs, outputs, batch_size)


def _check_input_names(request: InferenceRequest, model: LoadedModel, wrong: _Violations) -> None:
    expected = [spec.name for spec in model.signature.inputs]
    got = [tensor.name for tensor in request.inputs]
    # One more than expected is wrong already, and tells as much as thousands.
    for index, name in enumerate(got[: len(expected) + 1]):
        if name not in expected:
            wrong.add(
                f"inputs[{index}].name",
                f"unexpected inference input '{_shown(name)}' for model '{model.model}'. "
                f"Expected {expected}, got {_listed(got)}",
            )
        elif name in got[:index]:
            wrong.add(f"inputs[{index}].name", f"input '{name}' already exists in request")
    missing = [name for name in expected if name not in got]
    if missing:
        wrong.add(
            "inputs",
            f"expected {len(expected)} inputs but got {len(got)} inputs for model '{model.model}'. "
            f"Expected {expected}, got {_listed(got)}, missing {missing}",
        )


def _wanted_outputs(
    request: InferenceRequest, model: LoadedModel, wrong: _Violations
) -> tuple[TensorSpec, ...]:
    if not request.outputs:
        return model.signature.outputs
    specs = {spec.name: spec for spec in model.signature.outputs}
    for index, name in enumerate(request.outputs):
        if name not in specs:
            wrong.add(
                f"outputs[{index}].name",
                f"unexpected inference output '{_shown(name)}' for model '{model.model}'. "
                f"Expected some of {list(specs)}",
            )
    for name, count in Counter(request.outputs).items():
        if count > 1:
            wrong.add("outputs", f"output '{_shown(name)}' already requested")
    return tuple(specs[name] for name in request.outputs if name in specs)


def _check_input(
    field: str, tensor: InputTensor, spec: TensorSpec, model: LoadedModel, wrong: _Violations
) -> None:
    if tensor.datatype != spec.datatype:
        wrong.add(
            f"{field}.datatype",
            f"inference input '{spec.name}' data-type is '{_shown(tensor.datatype)}', but model "
            f"'{model.model}' expects '{spec.datatype}'",
        )
    elif not spec.accepts(tensor.shape) or any(size < 0 for size in tensor.shape):
        wrong.add(
            f"{field}.shape",
            f"unexpected shape for input '{spec.name}' for model '{model.model}'. "
            f"Expected {_sizes(spec.shape)}, got {_sizes(tensor.shape)}",
        )
    elif tensor.data is None and 0 not in tensor.shape:
        wrong.add(f"{field}.contents", f"unable to find data for input tensor '{spec.name}'")
    else:
        try:
            if isinstance(tensor.data, TypedContents):
                _check_contents(tensor.data, spec, tensor.shape)
            elif spec.datatype != "BYTES":
                _array(tensor, spec)  # a view, which costs nothing
        except TensorError as error:
            wrong.add(f"{field}.contents", f"input '{spec.name}': {error}")


def _array(tensor: InputTensor, spec: TensorSpec) -> NDArray[Any]:
    if isinstance(tensor.data, TypedContents):
        array = _from_contents(tensor.data, spec, tensor.shape)
    else:
        array = from_raw(tensor.data or b"", spec.datatype, tensor.shape)
    return _to_strings(array) if spec.datatype == "BYTES" else array


def _check_contents(contents: TypedContents, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    expected = CONTENTS_FIELDS.get(spec.datatype)
    if expected is None:
        raise TensorError(f"{spec.datatype} travels only in raw_input_contents")
    if contents.field != expected:
        raise TensorError(f"expected {expected} for {spec.datatype}, got {contents.field}")
    count = math.prod(shape)
    if len(contents.values) != count:
        raise TensorError(
            f"expected {count} elements for shape {_sizes(shape)}, got {len(contents.values)}"
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


def _batch_size(request: InferenceRequest, model: LoadedModel, wrong: _Violations) -> int:
    if model.max_batch_size == 0:
        return 1
    sizes = {tensor.name: tensor.shape[0] for tensor in request.inputs}
    first = next(iter(sizes.values()))
    for index, (name, size) in enumerate(sizes.items()):
        field = f"inputs[{index}].shape"
        if size != first:
            wrong.add(
                field,
                f"input '{name}' batch size does not match other inputs for '{model.model}': "
                f"expected {first}, got {size}",
            )
        elif size < 1 or size > model.max_batch_size:
            limit = f"<= {model.max_batch_size}" if size else ">= 1"
            wrong.add(
                field,
                f"inference request batch-size must be {limit} for '{model.model}', got {size}",
            )
    return first


def _sizes(shape: Sequence[int]) -> str:
    """Writes a shape as Triton does: `[-1,16]`."""
    return "[" + ",".join(map(str, shape[:32])) + (",…]" if len(shape) > 32 else "]")


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _listed(names: Sequence[str]) -> list[str]:
    return [_shown(name) for name in names[:20]]
