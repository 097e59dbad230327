"""The process of trial loads: `python -m modelrail_inference.runtime.trial PARENT SECONDS`.

It imports ONNX Runtime once and forks a child for each model, so a trial costs a fork and a load.
No session and no other thread exists in it, so a fork copies nothing that is half done; nothing
else happens here, as each child must be free to crash.

Standard input is a socket. Each message on it carries two descriptors: a file with the pickled
`TrialJob`, and a socket for what comes of it. There the child says how the load went, and then this
process how the child ended: JSON, one message each. When the other end of a socket closes, the
trial is of no use any more and the child is killed; when that of standard input does, everything
ends, and so it does after so many seconds without a trial.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelrail_inference.model.definition import LoadError, TransientLoadError
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.runtime.provider import prepare
from modelrail_inference.runtime.trial.job import TrialJob, end_with

__all__ = ["SessionLoader", "main"]  # the loader is what jobs hold: it is imported before the forks

_MAX_REASON = 1000
_NO_PROCESS = "no process could be started for the trial: the limit of this system is reached"


@dataclass(frozen=True, slots=True)
class _Child:
    """A trial that runs."""

    pid: int
    pidfd: int
    answers: socket.socket

    def kill(self) -> None:
        """Ends the child and what it started in its session."""
        for kill in (os.kill, os.killpg):  # the group exists once the child has made it
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)


def main() -> None:
    """Serves until the other end closes or there was nothing to do for a while."""
    end_with(int(sys.argv[1]))
    idle_seconds = float(sys.argv[2])
    prepare()
    control = socket.socket(fileno=os.dup(0))
    children: set[_Child] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while events := selector.select(None if children else idle_seconds):
            for key, _ in events:
                child: _Child | None = key.data
                if child is None:
                    _, descriptors, _, _ = socket.recv_fds(control, 1, 2)
                    if not descriptors:
                        _end(children)
                        return
                    started = _start(*descriptors)
                    if started is None:
                        continue
                    children.add(started)
                    selector.register(started.pidfd, selectors.EVENT_READ, started)
                    selector.register(started.answers, selectors.EVENT_READ, started)
                elif key.fd == child.pidfd:
                    for registered in (child.pidfd, child.answers):
                        with suppress(KeyError):
                            selector.unregister(registered)
                    children.discard(child)
                    _tell_end(child)
                elif child in children:  # the other end never writes, so it has closed
                    selector.unregister(child.answers)
                    child.kill()


def _end(children: set[_Child]) -> None:
    for child in children:
        child.kill()
        os.waitpid(child.pid, 0)


def _start(job: int, answers_fd: int) -> _Child | None:
    """Starts a trial; None when the system allows no more processes: the other end is told."""
    answers = socket.socket(fileno=answers_fd)
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(job)
        with suppress(OSError), answers:
            answers.send(json.dumps({"reason": _NO_PROCESS, "transient": True}).encode())
            answers.send(json.dumps({"ended": 1}).encode())
        return None
    if pid == 0:
        _be_child(job, answers, parent)
    os.close(job)
    return _Child(pid, os.pidfd_open(pid), answers)


def _tell_end(child: _Child) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pidfd)
    with suppress(OSError), child.answers:  # the other end may have closed
        child.answers.send(json.dumps({"ended": os.waitstatus_to_exitcode(status)}).encode())


def _be_child(job: int, answers: socket.socket, parent: int) -> None:
    status = 1
    try:
        os.setsid()
        end_with(parent)
        _drop_descriptors(job, answers.fileno())
        with os.fdopen(job, "rb") as file:
            trial: TrialJob = pickle.load(file)  # noqa: S301 - from the process that started this one
        trial.confine()
        answers.send(json.dumps(_attempt(trial)).encode())
        status = 0
    finally:
        os._exit(status)


def _drop_descriptors(*kept: int) -> None:
    """Closes what belongs to the parent, the sockets of other trials among it."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2 and descriptor not in kept:
            with suppress(OSError):  # that of the listing is closed already
                os.close(descriptor)


def _attempt(trial: TrialJob) -> dict[str, Any]:
    try:
        trial.loader.load(trial.definition)
    except MemoryError:
        return {"out_of_memory": True}
    except LoadError as error:
        reason = str(error)[:_MAX_REASON]
        if "bad_alloc" in reason or "more memory" in reason or "bad allocation" in reason:
            return {"out_of_memory": True}
        return {"reason": reason, "transient": isinstance(error, TransientLoadError)}
    return {"loaded": True}


if __name__ == "__main__":
    main()
