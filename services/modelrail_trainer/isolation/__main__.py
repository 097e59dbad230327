"""Runs a command, guarded and confined: `… CONFINEMENT COMMAND [ARGUMENT …]`.

Imports little: every job waits for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from modelrail_trainer.handover.journal import JOURNAL_NAME, IsolationEvent, JournalWriter
from modelrail_trainer.isolation.confinement import Confinement
from modelrail_trainer.isolation.guard import fork_guarded
from modelrail_trainer.isolation.layer import Layer
from modelrail_trainer.isolation.limits import limit_resources
from modelrail_trainer.isolation.surroundings import look_around
from modelrail_trainer.isolation.walls import raise_walls


def confine(confinement: Confinement, command: Sequence[str], *, guarded: bool) -> list[Layer]:
    """Puts all walls around this process and tells which of them hold.

    Args:
        confinement: The walls.
        command: What the process becomes.
        guarded: Whether what it leaves behind falls to its guard.
    """
    return [
        *look_around(confinement.variables, guarded=guarded),
        *limit_resources(confinement.limits),
        *raise_walls(confinement, command),
    ]


def main(argv: Sequence[str]) -> NoReturn:
    """Becomes the guard of the command, which runs confined."""
    text, *command = argv
    confinement = Confinement.from_json(text)
    guarded = fork_guarded()
    layers = confine(confinement, command, guarded=guarded)
    with JournalWriter(confinement.directory / JOURNAL_NAME) as journal:
        journal.write(IsolationEvent(tuple(layers)))
    os.execvp(command[0], command)  # noqa: S606 - the service chose the command


if __name__ == "__main__":
    main(sys.argv[1:])
