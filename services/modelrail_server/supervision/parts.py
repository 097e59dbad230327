"""Which parts of the server serve, over all workers: the supervisor's half and a worker's.

A worker says of each part, like `infer/digits`, whether it serves there. The supervisor makes one
state of that and tells every worker, whose health service shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

__all__ = ["MergedParts", "PartsOfWorker", "PartsSink"]

PartStates = Mapping[str, bool | None]
"""Whether each part serves; None: it is not known any more."""


class PartsSink(Protocol):
    """Takes what is said of a part; `Health` is one."""

    def set(self, name: str, serving: bool) -> None:
        """Says whether a part serves."""

    def remove(self, name: str) -> None:
        """Forgets a part."""


class MergedParts:
    """In the supervisor: what all workers say, as one.

    A part serves where every worker that takes requests serves it, and is known where one knows it.

    Args:
        tell: Sends states to a worker, by its number.
    """

    def __init__(self, tell: Callable[[int, PartStates], None]) -> None:
        self._tell = tell
        self._said: dict[int, dict[str, bool]] = {}
        self._serving: set[int] = set()
        self._merged: dict[str, bool] = {}

    def say(self, worker: int, name: str, serving: bool | None) -> None:
        """A worker says whether it serves a part; None: it does not know the part any more."""
        states = self._said.setdefault(worker, {})
        if serving is None:
            states.pop(name, None)
        else:
            states[name] = serving
        if worker in self._serving:
            self._update([name])

    def join(self, worker: int) -> None:
        """A worker takes requests from now on; it is told everything."""
        self._serving.add(worker)
        self._update({*self._merged, *self._said.get(worker, ())})
        self._tell(worker, dict(self._merged))

    def leave(self, worker: int) -> None:
        """A worker has ended."""
        self._serving.discard(worker)
        self._said.pop(worker, None)
        # With the last worker nobody is left to be told, and nothing is known.
        self._update(list(self._merged))

    def _update(self, names: Iterable[str]) -> None:
        changes: dict[str, bool | None] = {}
        for name in names:
            state = self._state(name)
            if state != self._merged.get(name):
                changes[name] = state
                if state is None:
                    del self._merged[name]
                else:
                    self._merged[name] = state
        if changes:
            for worker in self._serving:
                self._tell(worker, changes)

    def _state(self, name: str) -> bool | None:
        states = [self._said.get(worker, {}).get(name) for worker in self._serving]
        if all(state is None for state in states):
            return None
        return all(states)


class PartsOfWorker:
    """In a worker: says what it serves, and shows what all serve.

    Until it is told what all serve, it shows what it serves itself. From then on a part serves
    where this process and all together do: it must not send callers to what it has just lost, nor
    to what the others do not have yet.

    Args:
        shown: Where callers look.
        say: Tells the supervisor whether this process serves a part.
    """

    def __init__(self, shown: PartsSink, say: Callable[[str, bool | None], None]) -> None:
        self._shown = shown
        self._say = say
        self._own: dict[str, bool] = {}
        self._all: dict[str, bool] | None = None

    def set(self, name: str, serving: bool) -> None:
        """Says whether this process serves a part."""
        self._own[name] = serving
        self._say(name, serving)
        self._show(name)

    def remove(self, name: str) -> None:
        """This process does not know the part any more."""
        if self._own.pop(name, None) is not None:
            self._say(name, None)
            self._show(name)

    def told(self, states: PartStates) -> None:
        """Takes the states of all workers together; those that it leaves out are as before."""
        if self._all is None:
            self._all = {}
            states = {**dict.fromkeys(self._own), **states}
        for name, serving in states.items():
            if serving is None:
                self._all.pop(name, None)
            else:
                self._all[name] = serving
            self._show(name)

    def _show(self, name: str) -> None:
        own = self._own.get(name)
        merged = own if self._all is None else self._all.get(name)
        if own is None and merged is None:
            self._shown.remove(name)
        else:
            self._shown.set(name, bool(own and merged))
