"""Who holds a job, so that of two trainers that think so one is right.

A trainer that takes a job gets the next epoch of it, and every write about the job names the epoch.
The database takes it only while that epoch is the newest. So a trainer that was frozen while
another took its job over can change nothing any more, however late it wakes: the epoch is a fencing
token (https://jepsen.io/analyses/etcd-3.4.3), and the lease only tells the others when to look.

On SQLite one data directory has one trainer, which the lock on the directory sees to. There leases
have epochs and no end, and no clock has a say.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelrail.names import TrainingJobName


@dataclass(frozen=True, slots=True)
class Lease:
    """A job, as the holder of one epoch knows it.

    Attributes:
        name: The job.
        epoch: How often it had been taken when this was its state.
    """

    name: TrainingJobName
    epoch: int


class StaleLease(Exception):
    """The job was taken by somebody else, was started again, or has ended since."""
