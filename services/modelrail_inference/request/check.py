"""From an untrusted request to the inputs of a session: every rule that a request can break.

What the rules do not touch: NaN and infinities pass where the model's configuration does not reject
them, and so do dimensions of size 0, except that a batch has at least one item.
"""

from __future__ import annotations

import math
from collections import Counter

from modelrail.tensor import NUMPY_TYPES, TensorError, from_raw
from modelrail_inference.model.batching import Padding
from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.model.signature import TensorSpec
from modelrail_inference.request.feed import Feed, FeedInput, check_contents
from modelrail_inference.request.message import InferenceRequest, InputTensor, TypedContents
from modelrail_inference.request.violations import Violations, listed, shown, sizes


class RequestChecker:
    """Checks requests for one model. What does not depend on the request is made once.

    Args:
        model: The model.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._specs = model.signature.inputs
        self._outputs = model.signature.outputs
        self._batches = model.max_batch_size > 0
        self._padding = model.settings.padding
        self._rows = tuple(_InputForm(spec, self._batches) for spec in self._specs)
        self._has_flags = any(spec.datatype == "BOOL" for spec in self._specs)
        self._rejects_nonfinite = model.settings.rejects_nonfinite
        # Without inputs nothing says how many items there are.
        self._simple = (
            bool(self._rows)
            and self._padding is None
            and all(form.is_simple for form in self._rows)
        )

    def check(self, request: InferenceRequest) -> Feed:
        """Checks everything about a request but the elements of its inputs.

        Raises:
            InvalidArgument: An input or output is missing, unknown, named twice, or has the wrong
                datatype, shape or number of bytes. Every wrong field is among the violations.
        """
        return self._check_simple(request) or self._check_all(request)

    def _check_simple(self, request: InferenceRequest) -> Feed | None:
        """Checks the usual request in few steps; None for one that needs a closer look."""
        if not self._simple or request.outputs or len(request.inputs) != len(self._rows):
            return None
        items = -1
        for tensor, form in zip(request.inputs, self._rows, strict=True):
            data = tensor.data
            if tensor.name != form.name or tensor.datatype != form.datatype or data is None:
                return None
            shape = tensor.shape
            if not shape or shape[1:] != form.row_shape or isinstance(data, TypedContents):
                return None
            rows = shape[0]
            if rows < 1 or len(data) != rows * form.row_bytes or items not in (-1, rows):
                return None
            items = rows
        if items > self._model.max_batch_size:
            return None
        inputs = tuple(zip(request.inputs, self._specs, strict=True))
        return Feed(
            inputs,
            self._outputs,
            items,
            is_exact=True,
            has_flags=self._has_flags,
            rejects_nonfinite=self._rejects_nonfinite,
        )

    def _check_all(self, request: InferenceRequest) -> Feed:
        model = self._model
        wrong = Violations()
        _check_input_names(request, model, wrong)
        outputs = _wanted_outputs(request, model, wrong)
        wrong.check()
        given = {tensor.name: (index, tensor) for index, tensor in enumerate(request.inputs)}
        inputs = tuple((given[spec.name][1], spec) for spec in self._specs)
        for spec in self._specs:
            index, tensor = given[spec.name]
            _check_input(f"inputs[{index}]", tensor, spec, model, wrong)
        wrong.check()
        batch_size = _batch_size(request, model, wrong)
        wrong.check()
        if self._padding is None:
            key = () if self._simple else tuple(t.shape[int(self._batches) :] for t, _ in inputs)
            feed = Feed(inputs, outputs, batch_size, key)
        else:
            feed = _padded_feed(inputs, outputs, batch_size, self._padding)
        feed.rejects_nonfinite = self._rejects_nonfinite
        return feed


class _InputForm:
    """What an input must look like, where only the number of rows is open."""

    __slots__ = ("datatype", "is_simple", "name", "row_bytes", "row_shape")

    def __init__(self, spec: TensorSpec, batches: bool) -> None:
        self.name = spec.name
        self.datatype = spec.datatype
        self.row_shape = spec.shape[1:]
        self.is_simple = (
            batches and spec.datatype != "BYTES" and all(size > 0 for size in self.row_shape)
        )
        self.row_bytes = (
            math.prod(self.row_shape) * NUMPY_TYPES[spec.datatype].itemsize if self.is_simple else 0
        )


def _padded_feed(
    inputs: tuple[FeedInput, ...],
    outputs: tuple[TensorSpec, ...],
    batch_size: int,
    padding: Padding,
) -> Feed:
    """Returns the feed of a request for a model that pads.

    Raises:
        InvalidArgument: The padded inputs have different lengths, or longer ones than the model's
            configuration allows.
    """
    wrong = Violations()
    length = -1
    row_bytes = 0  # of the padded inputs, for each place up to the edge
    key: list[tuple[int, ...]] = []
    for index, (tensor, spec) in enumerate(inputs):
        padded = padding.inputs.get(spec.name)
        if padded is None:
            key.append(tensor.shape[1:])
            continue
        axis = padded.axis
        others = (*tensor.shape[1:axis], *tensor.shape[axis + 1 :])
        key.append(others)
        row_bytes += math.prod(others) * NUMPY_TYPES[spec.datatype].itemsize
        if length not in (-1, tensor.shape[axis]):
            wrong.add(
                f"inputs[{index}].shape",
                f"input '{spec.name}' must be as long as the other padded inputs: expected "
                f"{length} at axis {axis}, got {tensor.shape[axis]}",
            )
        length = tensor.shape[axis]
    edge = padding.edge_of(length)
    if edge is None:
        wrong.add(
            "inputs",
            f"expected a length of at most {padding.edges[-1]}, got {length}",
        )
    wrong.check()
    edge = edge or 0
    return Feed(
        inputs,
        outputs,
        batch_size,
        (edge, *key),
        length=length,
        edge=edge,
        padded_bytes=batch_size * row_bytes * edge,
    )


def _check_input_names(request: InferenceRequest, model: LoadedModel, wrong: Violations) -> None:
    expected = [spec.name for spec in model.signature.inputs]
    got = [tensor.name for tensor in request.inputs]
    # One more than expected is wrong already, and tells as much as thousands.
    for index, name in enumerate(got[: len(expected) + 1]):
        if name not in expected:
            wrong.add(
                f"inputs[{index}].name",
                f"unexpected inference input '{shown(name)}' for model '{model.model}'. "
                f"Expected {expected}, got {listed(got)}",
            )
        elif name in got[:index]:
            wrong.add(f"inputs[{index}].name", f"input '{name}' already exists in request")
    missing = [name for name in expected if name not in got]
    if missing:
        wrong.add(
            "inputs",
            f"expected {len(expected)} inputs but got {len(got)} inputs for model '{model.model}'. "
            f"Expected {expected}, got {listed(got)}, missing {missing}",
        )


def _wanted_outputs(
    request: InferenceRequest, model: LoadedModel, wrong: Violations
) -> tuple[TensorSpec, ...]:
    if not request.outputs:
        return model.signature.outputs
    specs = {spec.name: spec for spec in model.signature.outputs}
    for index, name in enumerate(request.outputs):
        if name not in specs:
            wrong.add(
                f"outputs[{index}].name",
                f"unexpected inference output '{shown(name)}' for model '{model.model}'. "
                f"Expected some of {list(specs)}",
            )
    for name, count in Counter(request.outputs).items():
        if count > 1:
            wrong.add("outputs", f"output '{shown(name)}' already requested")
    return tuple(specs[name] for name in request.outputs if name in specs)


def _check_input(
    field: str, tensor: InputTensor, spec: TensorSpec, model: LoadedModel, wrong: Violations
) -> None:
    if tensor.datatype != spec.datatype:
        wrong.add(
            f"{field}.datatype",
            f"inference input '{spec.name}' data-type is '{shown(tensor.datatype)}', but model "
            f"'{model.model}' expects '{spec.datatype}'",
        )
    elif not spec.accepts(tensor.shape) or any(size < 0 for size in tensor.shape):
        wrong.add(
            f"{field}.shape",
            f"unexpected shape for input '{spec.name}' for model '{model.model}'. "
            f"Expected {sizes(spec.shape)}, got {sizes(tensor.shape)}",
        )
    elif tensor.data is None and 0 not in tensor.shape:
        wrong.add(f"{field}.contents", f"unable to find data for input tensor '{spec.name}'")
    else:
        try:
            if isinstance(tensor.data, TypedContents):
                check_contents(tensor.data, spec, tensor.shape)
            elif spec.datatype != "BYTES":
                from_raw(tensor.data or b"", spec.datatype, tensor.shape)  # a view costs nothing
        except TensorError as error:
            wrong.add(f"{field}.contents", f"input '{spec.name}': {error}")


def _batch_size(request: InferenceRequest, model: LoadedModel, wrong: Violations) -> int:
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
