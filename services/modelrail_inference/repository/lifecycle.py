"""The life of one model version.

    UNAVAILABLE ──load──▶ LOADING ──ready──▶ READY ──retire──▶ UNLOADING ──drained──▶ UNAVAILABLE
         ▲                   │
         └──────failed───────┘

A READY version that is loaded anew (its file changed) stays READY on the old file until the new
one is warm; when that fails it stays READY, and the reason says so.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelrail_inference.model.definition import LoadedModel, VersionDefinition

if TYPE_CHECKING:
    from modelrail_inference.scheduling.lane import Lane


class State(enum.Enum):
    """Where a version is in its life, in the protocol's words."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


class Serving:
    """A loaded model and the requests that use it. For the event loop's thread only."""

    __slots__ = ("_idle", "_users", "lane", "model")

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.lane: Lane | None = None
        """The model's place in the scheduler, from its first request on."""
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def acquire(self) -> None:
        """Counts one more request that uses the model."""
        self._users += 1
        self._idle.clear()

    def release(self) -> None:
        """Counts one request less."""
        self._users -= 1
        if self._users == 0:
            self._idle.set()

    async def drain(self) -> None:
        """Waits until no request uses the model, then frees it. Nobody may acquire it any more."""
        await self._idle.wait()
        self.model.close()


@dataclass(slots=True)
class Version:
    """One version and where it is in its life.

    Attributes:
        number: Number of the version.
        state: Where it is.
        reason: Why it is not ready, or what went wrong last; empty when there is nothing to say.
        serving: The loaded model, while the state is READY.
        fingerprint: Of the definition that serves.
    """

    number: int
    state: State = State.UNAVAILABLE
    reason: str = ""
    serving: Serving | None = None
    fingerprint: str = ""

    def begin_load(self) -> None:
        """A load starts; a version that serves goes on serving."""
        if self.serving is None:
            self.state, self.reason = State.LOADING, ""

    def become_ready(self, serving: Serving, fingerprint: str) -> Serving | None:
        """The loaded model takes over; returns the one that it replaces."""
        replaced, self.serving = self.serving, serving
        if replaced is not None:
            # What is in flight on the old file still counts, and no counter steps back.
            serving.model.statistics = replaced.model.statistics
        self.state, self.reason, self.fingerprint = State.READY, "", fingerprint
        return replaced

    def fail(self, reason: str) -> None:
        """A load failed; a version that serves goes on serving."""
        self.reason = reason
        if self.serving is None:
            self.state = State.UNAVAILABLE

    def retire(self, reason: str) -> Serving | None:
        """No new request gets this version; returns what is to be drained.

        One that does not serve stays as it is: it is being drained already, or its reason says
        why it is not ready.
        """
        serving, self.serving = self.serving, None
        if serving is not None:
            self.state, self.reason, self.fingerprint = State.UNLOADING, reason, ""
        return serving

    def drained(self) -> None:
        """The last request that used the retired model has ended."""
        if self.state is State.UNLOADING:
            self.state = State.UNAVAILABLE


@dataclass(slots=True)
class Model:
    """A model's versions, and the lock that lets one load or unload happen at a time.

    Attributes:
        name: Name of the model.
        versions: All versions that were ever asked for, by number.
        latest: The newest that serves; kept, because nearly every request asks for it.
        changes: Held by whoever loads or unloads.
    """

    name: str
    versions: dict[int, Version] = field(default_factory=dict)
    latest: Version | None = None
    changes: asyncio.Lock = field(default_factory=asyncio.Lock)

    def version(self, definition: VersionDefinition) -> Version:
        """Returns the version of a definition; a new one is UNAVAILABLE."""
        return self.versions.setdefault(definition.number, Version(definition.number))

    def ready(self) -> list[Version]:
        """Returns the versions that serve, in ascending order; may be called on any thread."""
        versions = sorted(self.versions.values(), key=lambda version: version.number)
        return [version for version in versions if version.serving]
