"""What clients want of a job that is being worked on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from modelrail.names import TrainingJobName
from modelrail_trainer.jobs.job import Job
from modelrail_trainer.jobs.state import JobState


@dataclass(frozen=True, slots=True, eq=False)
class Wishes:
    """The wishes that concern one attempt of a job.

    Attributes:
        changed: Set after a client changed the job's state. Only the database knows the state: a
            job that was paused may have been resumed before somebody looks.
        cancelled: Set when the job is CANCELLING, which nothing takes back.
    """

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class Wishing:
    """Hands the wishes of clients to whoever works on the job at the time."""

    def __init__(self) -> None:
        self._wishes: dict[TrainingJobName, Wishes] = {}

    def expect(self, name: TrainingJobName) -> Wishes:
        """Returns what `tell` sets from now on."""
        wishes = self._wishes[name] = Wishes()
        return wishes

    def forget(self, name: TrainingJobName, wishes: Wishes) -> None:
        """Ends what `expect` began."""
        # By now a later attempt of the job may have put its own in this place.
        if self._wishes.get(name) is wishes:
            del self._wishes[name]

    def stir(self, name: TrainingJobName) -> None:
        """Has whoever works on the job look at it."""
        if (wishes := self._wishes.get(name)) is not None:
            wishes.changed.set()

    def tell(self, job: Job) -> None:
        """Tells that a client changed the job's state."""
        wishes = self._wishes.get(job.name)
        if wishes is None:
            return
        wishes.changed.set()
        if job.state in {JobState.CANCELLING, JobState.CANCELLED}:
            wishes.cancelled.set()
