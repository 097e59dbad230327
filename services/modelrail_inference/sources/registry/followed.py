"""One model that the registry source follows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelrail_inference.sources.registry.cache import Manifest
from modelrail_inference.sources.registry.reference import Reference


@dataclass(slots=True)
class FollowedModel:
    """What is wanted of a model, and how far that got. For the event loop's thread only.

    Attributes:
        name: Name of the model.
        references: What is to be served.
        served: Version number that each reference was served with last.
        confirmed: Versions whose files the registry named during this process. Others come from
            the cache of an earlier one, and the registry may have been replaced since.
        refused: Versions whose files were not those of the manifest, right after a download; they
            are not downloaded again for the same manifest until somebody loads the model.
        changed: Set when the registry may mean something else by now.
        changes: Lets one load or unload happen at a time.
        unloaded: Whether somebody took the model away; it is not followed until loaded again.
        problem: What kept the last reconciliation from fetching; empty when nothing did.
    """

    name: str
    references: list[Reference] = field(default_factory=list)
    served: dict[Reference, int] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)
    refused: dict[int, Manifest] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    changes: asyncio.Lock = field(default_factory=asyncio.Lock)
    unloaded: bool = False
    problem: str = ""

    def numbers(self) -> set[int]:
        """Returns the versions that serve."""
        return set(self.served.values())

    def note(self, loaded: Mapping[Reference, int]) -> bool:
        """Remembers what serves now; returns whether that is something else than before."""
        before = dict(self.served)
        self.served.update(loaded)
        return self.served != before
