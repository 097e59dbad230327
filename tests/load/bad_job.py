"""A worker that does what its job's display name says: python -m tests.load.bad_job."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from modelrail.trainer.v1 import trainer_pb2
from modelrail_trainer.handover import journal

QUIET = "waits"
KINDS = (
    "computes on every processor",
    "forks without end",
    "prints without end",
    "takes memory without end",
)
_PROCESSES = 64
_BYTES = 1 << 20


def main() -> None:
    """Tells that it runs, and goes on without end."""
    directory = Path(sys.argv[sys.argv.index("--job-directory") + 1])
    content = (directory / "spec.binpb").read_bytes()
    kind = trainer_pb2.TrainingJobSpec.FromString(content).display_name
    with journal.JournalWriter(directory / journal.JOURNAL_NAME) as log:
        log.write(journal.PhaseEvent(journal.Phase.PREPARING))
        log.write(journal.PhaseEvent(journal.Phase.RUNNING))
    if kind == "computes on every processor":
        for _ in os.sched_getaffinity(0):
            if os.fork() == 0:
                break
        while True:
            pass
    if kind == "forks without end":
        # As many at a time as do not endanger the machine that measures.
        while True:
            children = [pid for _ in range(_PROCESSES) if (pid := _child())]
            for pid in children:
                os.waitpid(pid, 0)
    if kind == "prints without end":
        while True:
            print("x" * 10_000)
    if kind == "takes memory without end":
        # All that its limit allows, and then from the beginning: it is not to end.
        while True:
            _take_memory()
    while True:
        time.sleep(60)  # nothing to wait for


def _take_memory() -> None:
    held = []
    with suppress(MemoryError):
        while True:
            held.append(b"x" * _BYTES)


def _child() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


if __name__ == "__main__":
    main()
