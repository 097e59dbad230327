"""What a server says of itself and of a model, as far as it says anything."""

from __future__ import annotations

from dataclasses import dataclass

from modelrail.client.errors import Unimplemented
from modelrail.client.inference import AsyncInferenceClient
from modelrail.oip.v2.model_config_pb2 import ModelConfig

__all__ = ["InputSpec", "Target", "describe"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """With the batch axis; -1 where any size is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server and one of its models."""

    server: str
    """Name and version of the server program; empty where it does not say."""
    inputs: tuple[InputSpec, ...]
    """What a request must carry; optional inputs are left out."""
    max_batch_size: int | None
    """Largest batch; 0 for a model without a batch axis, None where the server does not say."""
    is_decoupled: bool = False
    """Whether the model may answer a request with several replies."""
    notes: tuple[str, ...] = ()
    """What the server did not say."""


async def describe(client: AsyncInferenceClient, model: str, version: str) -> Target:
    """Asks a server for what a load test must know.

    Only the model's metadata are needed; a server that offers nothing else is described by them.

    Raises:
        ModelrailError: The server cannot be reached, refuses the caller, or has no such model.
    """
    notes = []
    try:
        told = await client.server_metadata()
        server = f"{told.name} {told.version}".strip()
    except Unimplemented:
        server = ""
        notes.append("the server does not say its name and version (ServerMetadata)")
    metadata = await client.model_metadata(model, version)
    config: ModelConfig | None
    try:
        config = await client.model_config(model, version)
    except Unimplemented:
        config = None
        notes.append(
            "the server does not offer ModelConfig: a leading axis of any size in every input is"
            " taken for the batch axis"
        )
    optional = {i.name for i in config.input if i.optional} if config else set()
    return Target(
        server=server,
        inputs=tuple(
            InputSpec(tensor.name, tensor.datatype, tuple(tensor.shape))
            for tensor in metadata.inputs
            if tensor.name not in optional
        ),
        max_batch_size=config.max_batch_size if config else None,
        is_decoupled=config.model_transaction_policy.decoupled if config else False,
        notes=tuple(notes),
    )
