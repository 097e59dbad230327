"""What workers count beside their metrics, as the counts of one server.

A count has a key, such as a model and its version, and is added up over the workers: of one that is
silent what it said last, of one that ended what it had said. So no count goes back while a worker
has its key. What no worker has any more is gone, and begins at zero when it comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Counts", "MergedCounts", "Row"]

Counts = Mapping[str, Any]
"""Numbers and further counts, by name. Of a name that begins with `last_` the largest is shown."""

Row = tuple[Sequence[str], Counts | None]
"""A key with its counts; None: they are as this worker said before."""

_Key = tuple[str, ...]


class MergedCounts:
    """The last counts of each worker, and the sums of those that ended."""

    def __init__(self) -> None:
        self._said: dict[int, dict[_Key, Counts]] = {}
        self._ended: dict[_Key, dict[str, Any]] = {}

    def report(self, worker: int, rows: Iterable[Row], about: Sequence[str] = ()) -> None:
        """Takes the present counts of a worker: all of those whose keys begin with `about`."""
        before = self._said.get(worker, {})
        now = {key: counts for key, counts in before.items() if not _is_about(key, about)}
        for sequence, counts in rows:
            key = tuple(sequence)
            # A worker has the key even where it said nothing before that came here.
            now[key] = before.get(key, {}) if counts is None else counts
        self._said[worker] = now
        self._keep(before.keys() - now.keys(), before)
        had = set[_Key]().union(*self._said.values())
        for key in [key for key in self._ended if _is_about(key, about) and key not in had]:
            del self._ended[key]

    def retire(self, worker: int) -> None:
        """Keeps the counts of a worker that ended; another may come in its place."""
        said = self._said.pop(worker, {})
        self._keep(said, said)

    def forget(self, about: Sequence[str]) -> None:
        """Drops what was counted of the keys that begin with `about`, by ended workers or others.

        What a worker said last goes as well: it would be kept as of one that ended as soon as the
        worker says that it has the key no more.
        """
        kept: list[dict[_Key, Any]] = [self._ended, *self._said.values()]
        for counts in kept:
            for key in [key for key in counts if _is_about(key, about)]:
                del counts[key]

    def total(self, about: Sequence[str]) -> list[tuple[_Key, Counts]]:
        """Returns the sums of the keys that begin with `about` and that a worker has, in order.

        A key of which nothing is known is left out.
        """
        sums: dict[_Key, dict[str, Any]] = {}
        for said in self._said.values():
            for key, counts in said.items():
                if _is_about(key, about):
                    _add(sums.setdefault(key, {}), counts)
        for key, total in sums.items():
            _add(total, self._ended.get(key, {}))
        return sorted((key, total) for key, total in sums.items() if total)

    def _keep(self, keys: Iterable[_Key], said: Mapping[_Key, Counts]) -> None:
        for key in keys:
            _add(self._ended.setdefault(key, {}), said[key])


def _is_about(key: _Key, about: Sequence[str]) -> bool:
    return key[: len(about)] == tuple(about)


def _add(into: dict[str, Any], counts: Counts) -> None:
    for name, count in counts.items():
        if isinstance(count, Mapping):
            _add(into.setdefault(name, {}), count)
        elif name.startswith("last_"):
            into[name] = max(into.get(name, count), count)
        else:
            into[name] = into.get(name, 0) + count
