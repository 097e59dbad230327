"""Figures about jobs for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelrail_trainer.jobs.job import Job
from modelrail_trainer.jobs.state import JobState

_DURATION_BUCKETS_SECONDS = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000, 86400)


class _JobsByState(Collector):
    """Counts in the database at every scrape, so the figure cannot drift away from the truth."""

    def __init__(self, count: Callable[[], Mapping[JobState, int]]) -> None:
        self._count = count

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for state, count in self._count().items():
            family.add_metric([state.value.lower()], count)
        return [family]

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "modelrail_trainer_jobs", "Training jobs by state.", labels=["state"]
        )


class TrainerMetrics:
    """What the trainer measures.

    Args:
        registry: Where the figures are registered.
        count: Returns the number of jobs in each state; called in the scraper's thread.
    """

    def __init__(
        self, registry: CollectorRegistry, count: Callable[[], Mapping[JobState, int]]
    ) -> None:
        registry.register(_JobsByState(count))
        self._duration = Histogram(
            "modelrail_trainer_job_duration_seconds",
            "Time from a job's first process to its end.",
            ["state"],
            buckets=_DURATION_BUCKETS_SECONDS,
            registry=registry,
        )
        self.object_bytes = Counter(
            "modelrail_trainer_object_bytes_total",
            "Bytes that were copied out of object stores.",
            registry=registry,
        )
        self.publish_retries = Counter(
            "modelrail_trainer_publish_retries_total",
            "Publications that had to be tried again.",
            registry=registry,
        )

    def ended(self, job: Job) -> None:
        """Records a job that has reached a terminal state."""
        if job.start_time is not None and job.end_time is not None:
            seconds = (job.end_time - job.start_time).total_seconds()
            self._duration.labels(job.state.value.lower()).observe(max(0.0, seconds))
