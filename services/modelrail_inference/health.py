"""What health says of this process: of each model, and of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.protocol.policy import SERVICE
from modelrail_server.supervision.parts import PartsSink


class InferenceHealth:
    """Tells which models take requests, and that the process shall be replaced if a device failed.

    A GPU's failure mostly takes all that the process had on it, and no load in the process brings
    it back. So `""` and the service are NOT_SERVING from then on, as `infer/MODEL` is and as
    ServerReady and ModelReady say, until the model is loaded anew or unloaded. Requests are still
    tried.

    Of several workers each says so of all: a probe that reaches a worker whose device works learns
    of the one whose device does not. Nothing here ends that worker; whoever looks at health
    replaces the server, with its supervisor.

    Args:
        parts: Where it is told.
        loaded: Returns the models that take requests.
    """

    def __init__(self, parts: PartsSink, loaded: Callable[[], Iterable[LoadedModel]]) -> None:
        self._parts = parts
        self._loaded = loaded
        self._failed: set[str] = set()
        self._tell_whole()

    def changed(self, name: str, ready: bool | None) -> None:
        """Takes in that a model takes requests, or takes none; None: there is no such model."""
        if name in self._failed and not self._has_failed(name):
            self._failed.discard(name)
            self._tell_whole()
        if ready is None:
            self._parts.remove(f"infer/{name}")
        else:
            self._parts.set(f"infer/{name}", ready and name not in self._failed)

    def device_failed(self, name: str) -> None:
        """Takes in that the device of a model has failed, if the model still takes requests."""
        if self._has_failed(name):
            self._failed.add(name)
            self._tell_whole()
            self._parts.set(f"infer/{name}", False)

    def _has_failed(self, name: str) -> bool:
        return any(model.model == name and model.device_failure for model in self._loaded())

    def _tell_whole(self) -> None:
        for name in ("", SERVICE):
            self._parts.set(name, not self._failed)
