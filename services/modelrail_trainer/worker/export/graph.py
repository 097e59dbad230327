"""Graphs from what clients send to what they read: a preparation, the network, and a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelrail_trainer.handover.artifact import BATCH, Signature, TensorSpec

LABEL = "label"
LABEL_SPEC = TensorSpec(
    name=LABEL, datatype="BYTES", shape=(BATCH, 1), meaning="most probable class"
)
_NETWORK = "network."
# Apart from the names of inputs, which are the data's.
_OWN = "encode."
_ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "BYTES": TensorProto.STRING,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
}


class Graph:
    """Nodes and constants that are being put together in front of a network."""

    def __init__(self) -> None:
        self._values: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray[Any, Any]) -> str:
        """Adds an array, and returns its name."""
        name = f"{_OWN}constant_{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(value, name))
        return name

    def apply(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and returns that."""
        return self._node(operator, inputs, f"{_OWN}value_{len(self._nodes)}", **attributes)

    def cast(self, value: str, datatype: str) -> str:
        """Adds a node that converts to a datatype, as `FP32`; returns its output."""
        return self.apply("Cast", value, to=_ELEMENTS[datatype])

    def flattened(self, column: str) -> str:
        """Adds a node from [batch, 1] to [batch]; returns its output."""
        return self.apply("Reshape", column, self.constant(np.array([-1], np.int64)))

    def declare(self, value: str, datatype: str, shape: Sequence[int | str]) -> None:
        """States the type of a tensor that the checker of ONNX cannot find out."""
        self._values.append(helper.make_tensor_value_info(value, _ELEMENTS[datatype], list(shape)))

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = f"{_OWN}node_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def before(
        self,
        bare: onnx.ModelProto,
        prepared: str,
        signature: Signature,
        *,
        domains: Mapping[str, int] | None = None,
    ) -> onnx.ModelProto:
        """Returns the graph with a network behind it, and behind that the label, where one is read.

        Args:
            bare: The network, with one input.
            prepared: What the graph made of its inputs for it.
            signature: What the whole must look like.
            domains: Versions of the operators beside the default ones, by their domain.
        """
        (entry,) = (value.name for value in bare.graph.input)
        network = onnx.compose.add_prefix(bare, _NETWORK, inplace=False)
        self._node("Identity", [prepared], _NETWORK + entry)
        self._nodes.extend(network.graph.node)
        self._initializers.extend(network.graph.initializer)
        for output in signature.outputs:
            if output.name == LABEL:
                self._label(signature)
            else:
                self._node("Identity", [_NETWORK + output.name], output.name)
        return helper.make_model(
            helper.make_graph(
                self._nodes,
                "end_to_end",
                [_value(tensor) for tensor in signature.inputs],
                [_value(tensor) for tensor in signature.outputs],
                self._initializers,
                value_info=self._values,
            ),
            opset_imports=[
                *bare.opset_import,
                *(helper.make_opsetid(*domain) for domain in (domains or {}).items()),
            ],
            ir_version=bare.ir_version,
            producer_name=bare.producer_name,
            functions=network.functions,
        )

    def _label(self, signature: Signature) -> None:
        (labels,) = (output.labels for output in signature.outputs if output.name == "logits")
        place = self.apply("ArgMax", f"{_NETWORK}logits", axis=1, keepdims=1)  # [batch, 1]
        self._node("Gather", [self.constant(np.array(labels, object)), place], LABEL, axis=0)


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        tensor.name, _ELEMENTS[tensor.datatype], list(tensor.shape)
    )
