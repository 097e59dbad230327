"""What every source of models offers to the servicer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from modelrail_inference.model.definition import LoadError, TransientLoadError
from modelrail_server.errors import InvalidArgument, NotFound, ServiceError, Unavailable

_RETRY_AFTER_SECONDS = 5.0


class Source(Protocol):
    """Knows models by name and gets them into the repository."""

    async def start(self) -> None:
        """Loads what has to serve before the server listens.

        Raises:
            LoadError: It cannot be served, and without it there is nothing to serve.
        """

    async def run(self) -> None:
        """Loads the rest and follows changes, until nothing is left to do or it is cancelled."""

    def ready(self) -> bool:
        """Whether everything asked for at start serves; unloaded models do not count.

        What serves goes on serving while it is loaded anew, and when that fails, so neither makes
        the server unready.
        """

    async def names(self) -> Sequence[str]:
        """The models that can be loaded."""

    def problem(self, name: str) -> str:
        """Why no version of a model was found yet; empty when there is nothing to say."""

    async def load(self, name: str) -> None:
        """Loads a model, or loads it anew when it changed; returns when it is ready.

        Raises:
            NotFound: There is no such model.
            InvalidArgument: Its files cannot be loaded; what served before goes on serving.
            Unavailable: It cannot be loaded now.
        """

    async def unload(self, name: str) -> None:
        """Takes a model away until it is loaded again.

        Raises:
            NotFound: There is no such model.
        """


def unknown_model(name: str) -> NotFound:
    """Returns the error for a name that the source does not know."""
    return NotFound(
        f"failed to find model '{name[:80]}' in the repository", reason="MODEL_NOT_FOUND"
    )


def os_reason(error: OSError) -> str:
    """Returns what went wrong with a file, without the paths of this machine."""
    return error.strerror or "input/output error"


def load_error(name: str, error: LoadError) -> ServiceError:
    """Returns the error for a model that cannot be loaded, with Triton's code for bad files."""
    if isinstance(error, TransientLoadError):
        return Unavailable(
            f"load failed for model '{name}': {error}",
            reason="LOAD_FAILED_FOR_NOW",
            resource=f"models/{name}",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )
    return InvalidArgument(
        f"load failed for model '{name}': {error}",
        reason="LOAD_FAILED",
        resource=f"models/{name}",
    )
