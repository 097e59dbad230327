"""What the workers counted, kept up to date by asking them; what one counted outlives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelrail_server.observability.exposition import WrittenMetric
from modelrail_server.supervision.merged_counts import Counts, MergedCounts, Row
from modelrail_server.supervision.merged_metrics import MergedMetrics
from modelrail_server.supervision.siblings import Siblings
from modelrail_server.supervision.worker_process import WorkerProcess

__all__ = ["Figures"]


class Figures:
    """Metrics and counts of all workers as those of one server. For the event loop's thread only.

    Args:
        siblings: The workers.
    """

    def __init__(self, siblings: Siblings) -> None:
        self._siblings = siblings
        self._metrics = MergedMetrics()
        self._counts = MergedCounts()

    def take_metrics(self, worker: WorkerProcess, text: str) -> None:
        """Takes a worker's metrics, in the text format."""
        if (number := self._siblings.seat_of(worker)) is not None:
            self._metrics.report(number, text)

    def take_counts(
        self, worker: WorkerProcess, rows: Sequence[Row], about: Sequence[str] = ()
    ) -> None:
        """Takes a worker's counts: all of those whose keys begin with `about`."""
        if (number := self._siblings.seat_of(worker)) is not None:
            self._counts.report(number, rows, about)

    def retire(self, number: int) -> None:
        """Keeps what the worker counted that ended."""
        self._metrics.retire(number)
        self._counts.retire(number)

    def forget(self, subject: str) -> None:
        """Begins at zero with a model that every worker has unloaded; it may come back at once."""
        self._metrics.forget(subject)
        self._counts.forget([subject])

    async def metrics(self, *, timeout_seconds: float) -> Iterator[WrittenMetric]:
        """Returns the present metrics; of a worker that does not answer in time, the last ones."""

        def take(worker: WorkerProcess, answer: Mapping[str, Any]) -> None:
            if "result" in answer:
                self.take_metrics(worker, answer["result"])

        await self._siblings.ask_all("metrics", {}, timeout_seconds=timeout_seconds, heard=take)
        return self._metrics.families()

    async def counts(
        self, about: Sequence[str], *, timeout_seconds: float
    ) -> list[tuple[Sequence[str], Counts]]:
        """Returns the present counts of the keys that begin with `about`; silence as above."""

        def take(worker: WorkerProcess, answer: Mapping[str, Any]) -> None:
            if "result" in answer:
                self.take_counts(worker, answer["result"], about)

        question = {"about": about}
        await self._siblings.ask_all(
            "counts", question, timeout_seconds=timeout_seconds, heard=take
        )
        return list(self._counts.total(about))
