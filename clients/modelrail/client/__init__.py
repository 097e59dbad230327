"""Clients of the three services: async ones, and sync twins with the same methods.

async with AsyncInferenceClient("127.0.0.1:8001") as client:
    result = await client.infer("digits", {"image": images})

with InferenceClient("127.0.0.1:8001") as client:
    result = client.infer("digits", {"image": images})
"""

from modelrail.client.blocking import InferenceClient, RegistryClient, TrainerClient
from modelrail.client.channel import Connection, open_channel
from modelrail.client.errors import (
    Aborted,
    AlreadyExists,
    CallCancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InternalError,
    InvalidArgument,
    ModelrailError,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from modelrail.client.inference import (
    AsyncInferenceClient,
    InferFailure,
    InferRequest,
    InferResult,
)
from modelrail.client.registry import AsyncRegistryClient
from modelrail.client.trainer import AsyncTrainerClient

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncInferenceClient",
    "AsyncRegistryClient",
    "AsyncTrainerClient",
    "CallCancelled",
    "Connection",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "InferFailure",
    "InferRequest",
    "InferResult",
    "InferenceClient",
    "InternalError",
    "InvalidArgument",
    "ModelrailError",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "RegistryClient",
    "ResourceExhausted",
    "TrainerClient",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "open_channel",
]
