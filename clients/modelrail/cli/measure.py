"""What a served model answers to many requests, and how fast."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail.client.inference import AsyncInferenceClient, InferResult


@dataclass(frozen=True, slots=True)
class Measurement:
    """Answers in the order of the requests, and times."""

    results: list[InferResult]
    latencies_seconds: NDArray[np.float64]
    elapsed_seconds: float

    @property
    def requests_per_second(self) -> float:
        """Requests that ended in a second."""
        return len(self.results) / self.elapsed_seconds

    def latency_seconds(self, percentile: float) -> float:
        """Returns a percentile of the latencies."""
        return float(np.percentile(self.latencies_seconds, percentile))


async def measure(
    client: AsyncInferenceClient,
    model: str,
    version: str,
    name: str,
    rows: NDArray[Any],
    *,
    concurrency: int,
) -> Measurement:
    """Sends each row as a request of its own.

    Args:
        client: The inference service.
        model: Name of the model.
        version: Version as text.
        name: Name of the input.
        rows: Inputs, [rows, ...].
        concurrency: Requests in flight at a time.
    """
    results: list[InferResult | None] = [None] * len(rows)
    latencies = np.zeros(len(rows))
    indices = iter(range(len(rows)))

    async def send() -> None:
        for index in indices:
            start = time.perf_counter()
            results[index] = await client.infer(
                model, {name: rows[index : index + 1]}, version=version
            )
            latencies[index] = time.perf_counter() - start

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(send())
    elapsed = time.perf_counter() - start
    return Measurement([result for result in results if result is not None], latencies, elapsed)
