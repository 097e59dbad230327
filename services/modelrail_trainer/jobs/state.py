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


_S = JobState
# Whatever a process does, it can be ended, and a job whose process was lost runs again.
_OUT_OF_PROCESS = frozenset({_S.CANCELLING, _S.PAUSING, _S.FAILED, _S.EXPIRED, _S.QUEUED})

# The one table. A job whose process was lost with the trainer goes back to QUEUED and runs again.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.PREPARING, _S.PAUSED, _S.CANCELLING, _S.FAILED, _S.EXPIRED}),
    _S.PREPARING: _OUT_OF_PROCESS | {_S.RUNNING},
    _S.RUNNING: _OUT_OF_PROCESS | {_S.EXPORTING},
    _S.EXPORTING: _OUT_OF_PROCESS | {_S.REGISTERING},
    _S.REGISTERING: frozenset({_S.SUCCEEDED, _S.CANCELLING, _S.FAILED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    # The process may have come to an end of its own before it could be stopped.
    _S.PAUSING: frozenset({_S.PAUSED, _S.REGISTERING, _S.CANCELLING, _S.FAILED}),
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
# States that nobody works on: a client's wish takes effect at once.
IDLE = frozenset({_S.QUEUED, _S.PAUSED})
# States that wait for something outside the job: a free place, or the registry.
WAITING = frozenset({_S.QUEUED, _S.REGISTERING})


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
