"""Requests as bytes that are sent as they are: nothing is encoded while the load runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelrail.bench.server.target import InputSpec
from modelrail.oip.v2 import grpc_service_pb2 as pb

__all__ = ["Payload", "encode"]


@dataclass(frozen=True, slots=True)
class Payload:
    """One request."""

    body: bytes
    """A ModelInferRequest without an id."""
    items: int
    """Batch items in it."""


def encode(
    tensors: Sequence[tuple[InputSpec, bytes]],
    *,
    model: str,
    version: str,
    items: int,
    all_replies: bool,
) -> Payload:
    """Writes one request.

    Args:
        tensors: Inputs with the shapes that the request states, and their raw bytes.
        model: Name of the model.
        version: Version as text; empty lets the server choose.
        items: Batch items in the request.
        all_replies: Ask for a last, empty reply to every request, as needed to know the end of the
            answer of a decoupled model.
    """
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for spec, raw in tensors:
        message.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        message.raw_input_contents.append(raw)
    if all_replies:
        message.parameters["triton_enable_empty_final_response"].bool_param = True
    return Payload(message.SerializeToString(), items)
