"""Requests as the bytes that travel."""

from __future__ import annotations

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.tensor import datatype_of, to_raw
from tests.load.models import Inputs


def encode(model: str, inputs: Inputs) -> bytes:
    """Returns a ModelInferRequest."""
    message = pb.ModelInferRequest(model_name=model)
    for name, value in inputs.items():
        datatype = datatype_of(value)
        message.inputs.add(name=name, datatype=datatype, shape=value.shape)
        message.raw_input_contents.append(to_raw(value, datatype))
    return message.SerializeToString()
