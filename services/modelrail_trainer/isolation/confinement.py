"""What a job's process is told about its own limits and walls."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from modelrail_trainer.isolation.limits import JobLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """Everything that the process needs to know in order to confine itself.

    Attributes:
        directory: The job's own, which alone it may change.
        limits: What it may take of the machine.
        variables: Names of the environment variables that it was given on purpose.
        readable: Files and directories that it may read beside those of Python and the system.
        hidden: Files and directories that it must not read wherever they lie.
        has_tcp: Whether its processes talk to each other over TCP.
    """

    directory: Path
    limits: JobLimits
    variables: tuple[str, ...] = ()
    readable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    has_tcp: bool = False

    def to_json(self) -> str:
        """Returns it as text for a command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns what `to_json` was called on."""
        values = json.loads(text)
        return cls(
            directory=Path(values["directory"]),
            limits=JobLimits(**values["limits"]),
            variables=tuple(values["variables"]),
            readable=tuple(map(Path, values["readable"])),
            hidden=tuple(map(Path, values["hidden"])),
            has_tcp=values["has_tcp"],
        )
