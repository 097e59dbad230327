"""The server's statistics of a model, before a run and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from modelrail.bench.figures import ServerFigures
from modelrail.client.errors import ModelrailError
from modelrail.client.inference import AsyncInferenceClient
from modelrail.oip.v2 import grpc_service_pb2 as pb

__all__ = ["Snapshot", "difference", "take"]

_DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters at one moment, added up over the versions of the model."""

    counters: Mapping[str, int]

    @classmethod
    def of(cls, response: pb.ModelStatisticsResponse) -> Self:
        """Adds up what the server answered."""
        counters: Counter[str] = Counter()
        for version in response.model_stats:
            counters["items"] += version.inference_count
            counters["executions"] += version.execution_count
            for name in _DURATIONS:
                duration = getattr(version.inference_stats, name)
                counters[f"{name}.count"] += duration.count
                counters[f"{name}.ns"] += duration.ns
        return cls(dict(counters))


async def take(client: AsyncInferenceClient, model: str, version: str) -> Snapshot | str:
    """Asks for the statistics now; returns why there are none where the server gives none."""
    try:
        return Snapshot.of(await client.statistics(model, version))
    except ModelrailError as error:
        return f"{error.status.name}: {error.message}"


def difference(before: Snapshot | str, after: Snapshot | str) -> ServerFigures | str:
    """Returns what happened between two snapshots, or why that cannot be said."""
    if isinstance(before, str) or isinstance(after, str):
        why = before if isinstance(before, str) else after
        return f"no statistics of the server (ModelStatistics): {why}"
    grown = {
        name: after.counters.get(name, 0) - before.counters.get(name, 0)
        for name in after.counters.keys() | before.counters.keys()
    }
    if any(value < 0 for value in grown.values()):
        return "the server's statistics went back during the run: it or the model was restarted"

    def mean_seconds(name: str) -> float | None:
        count = grown.get(f"{name}.count", 0)
        return grown[f"{name}.ns"] / count / 1e9 if count else None

    executions = grown.get("executions", 0)
    return ServerFigures(
        succeeded=grown.get("success.count", 0),
        failed=grown.get("fail.count", 0),
        items=grown.get("items", 0),
        executions=executions,
        mean_batch_size=grown["items"] / executions if executions else None,
        queue_seconds=mean_seconds("queue"),
        compute_input_seconds=mean_seconds("compute_input"),
        compute_infer_seconds=mean_seconds("compute_infer"),
        compute_output_seconds=mean_seconds("compute_output"),
        request_seconds=mean_seconds("success"),
    )
