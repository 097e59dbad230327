"""The life of a job: one table says which state may follow which."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class JobState(enum.StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    EXPORTING = "EXPORTING"
    REGISTERING = "REGISTERING"
    SUCCEEDED = "SUCCEEDED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    PAUSED = "PAUSED"
    PAUSING = "PAUSING"
    RESTARTING = "RESTARTING"
    LOST = "LOST"


class Reason(enum.StrEnum):
    """Why a job failed, was cancelled, expired or waits."""

    DATA = "DATA"
    NAN_LOSS = "NAN_LOSS"
    EXPORT_FAILED = "EXPORT_FAILED"
    GATE_FAILED = "GATE_FAILED"
    PROCESS_DIED = "PROCESS_DIED"
    REGISTRY_UNAVAILABLE = "REGISTRY_UNAVAILABLE"
    REGISTRY_REFUSED = "REGISTRY_REFUSED"
    CANCELLED_BY_USER = "CANCELLED_BY_USER"
    INTERNAL = "INTERNAL"
    OOM = "OOM"
    TIMEOUT = "TIMEOUT"
    STALLED = "STALLED"
    NODE_LOST = "NODE_LOST"
    USER_CODE = "USER_CODE"
    DATA_UNAVAILABLE = "DATA_UNAVAILABLE"
    DISK_FULL = "DISK_FULL"
    DEVICE_UNAVAILABLE = "DEVICE_UNAVAILABLE"


# How often a job may run again for each reason, if its `max_retries` allows so many. The same data,
# seed and program make the same loss, the same export and the same use of memory, so those fail for
# good.
MOST_RETRIES: Mapping[Reason, int] = {
    Reason.DATA: 0,
    Reason.NAN_LOSS: 0,
    Reason.EXPORT_FAILED: 0,
    Reason.GATE_FAILED: 0,
    Reason.PROCESS_DIED: 10,
    # Fails no job: the publisher tries on for as long as it takes.
    Reason.REGISTRY_UNAVAILABLE: 0,
    Reason.REGISTRY_REFUSED: 0,
    Reason.CANCELLED_BY_USER: 0,
    Reason.INTERNAL: 0,
    Reason.OOM: 0,
    Reason.TIMEOUT: 0,
    # A lock or a disk that hung may not hang again; what hangs a third time does, and each time
    # holds a place for as long as silence is borne.
    Reason.STALLED: 2,
    # Has a bound of its own: the number of losses.
    Reason.NODE_LOST: 0,
    Reason.USER_CODE: 0,
    Reason.DATA_UNAVAILABLE: 10,
    Reason.DISK_FULL: 10,
    Reason.DEVICE_UNAVAILABLE: 0,
}


_S = JobState
# Whatever a process does, it can be ended, and a job whose process was lost runs again.
_OUT_OF_PROCESS = frozenset(
    {_S.CANCELLING, _S.PAUSING, _S.FAILED, _S.EXPIRED, _S.QUEUED, _S.RESTARTING, _S.LOST}
)

# The one table. A job whose process was lost with the trainer goes back to QUEUED and runs again.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.PREPARING, _S.PAUSED, _S.CANCELLING, _S.FAILED, _S.EXPIRED}),
    _S.PREPARING: _OUT_OF_PROCESS | {_S.RUNNING},
    _S.RUNNING: _OUT_OF_PROCESS | {_S.EXPORTING},
    _S.EXPORTING: _OUT_OF_PROCESS | {_S.REGISTERING},
    _S.REGISTERING: frozenset({_S.SUCCEEDED, _S.CANCELLING, _S.FAILED, _S.EXPIRED, _S.LOST}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    # The process may have come to an end of its own before it could be stopped.
    _S.PAUSING: frozenset({_S.PAUSED, _S.REGISTERING, _S.CANCELLING, _S.FAILED}),
    _S.RESTARTING: frozenset({_S.QUEUED, _S.PAUSED, _S.CANCELLING, _S.FAILED}),
    _S.LOST: frozenset({_S.QUEUED, _S.PAUSED, _S.CANCELLING, _S.FAILED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLING}),
    _S.SUCCEEDED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.FAILED: frozenset(),
    _S.EXPIRED: frozenset(),
}

TERMINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
# States in which the job owns an operating-system process.
WITH_PROCESS = frozenset({_S.PREPARING, _S.RUNNING, _S.EXPORTING})
# States in which a client's wish ends the process, and what comes when it is gone. What the process
# says of its phases does not count any more.
STOPPING: Mapping[JobState, JobState] = {_S.CANCELLING: _S.CANCELLED, _S.PAUSING: _S.PAUSED}
# States without a process or a publication: a client's wish takes effect at once.
IDLE = frozenset({_S.QUEUED, _S.PAUSED, _S.RESTARTING, _S.LOST})
# States in which a trainer holds the job.
HELD = frozenset(JobState) - TERMINAL - {_S.QUEUED, _S.PAUSED, _S.LOST}
# States that wait for a free place, the moment of the next attempt, or the registry.
WAITING = frozenset({_S.QUEUED, _S.RESTARTING, _S.REGISTERING})


class IllegalTransition(Exception):
    """A state was asked for that cannot follow the present one."""

    def __init__(self, old: JobState, new: JobState) -> None:
        super().__init__(f"a job that is {old} cannot become {new}")
        self.old = old
        self.new = new


def check_transition(old: JobState, new: JobState) -> None:
    """Returns when `new` may follow `old`.

    Raises:
        IllegalTransition: It may not; nothing follows a terminal state.
    """
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(old, new)
