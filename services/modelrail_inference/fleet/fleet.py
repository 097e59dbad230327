"""What the servicer asks of all processes that serve together, be it this one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from modelrail_inference.repository.repository import IndexEntry
from modelrail_inference.statistics import VersionStatistics


@dataclass(frozen=True, slots=True)
class Index:
    """What there is to serve.

    Attributes:
        entries: A row for each version that was ever asked for.
        problems: Of each model that can be loaded, why none of its versions was found yet; empty
            when there is nothing to say.
    """

    entries: Sequence[IndexEntry] = ()
    problems: Mapping[str, str] = field(default_factory=dict)


class Fleet(Protocol):
    """All processes that serve together."""

    async def load(self, name: str) -> None:
        """Loads a model, or loads it anew; returns when it is ready everywhere.

        A load that has begun goes on when the caller does not wait for it.

        Raises:
            ServiceError: It is not ready everywhere; see `Source.load`.
        """

    async def unload(self, name: str) -> None:
        """Takes a model away everywhere until it is loaded again.

        Raises:
            ServiceError: It is not known; see `Source.unload`.
        """

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        """Returns the counters of the versions that take requests: one, those of a model, or all.

        Raises:
            InvalidArgument: A model is named that does not take requests.
        """

    async def index(self) -> Index:
        """Returns what there is to serve.

        Raises:
            Unavailable: It cannot be found out now.
        """

    async def ready(self) -> bool:
        """Whether everything asked for at start is loaded everywhere."""

    async def model_ready(self, name: str, version: str) -> bool:
        """Whether a model, or one version of it, takes requests everywhere.

        Raises:
            InvalidArgument: The version is no number.
        """
