"""The metrics of all workers as those of one server.

Counters and histograms are added up over the workers, the ended ones included, so that no counter
goes back when one is replaced. Gauges are added up as well, except facts, of which every worker
tells the same: there the largest is shown. What describes a process gets the label `worker`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.utils import floatToGoString

from modelrail_server.observability.exposition import WrittenMetric, label

__all__ = ["Family", "MergedMetrics", "read_families"]

_OF_A_PROCESS = ("process_", "python_")
_FACTS = re.compile(r"_info$|_duration_secs$|_loaded_versions$|_file_bytes$|^nv_[cg]pu_")
_ADDED = frozenset({"counter", "histogram", "summary"})
_MAX_ENDED_SAMPLES = 200_000

_Number = int | float


@dataclass(slots=True)
class Family:
    """One metric of a report.

    Attributes:
        name: As it is shown.
        help: What it says.
        kind: `counter`, `gauge`, `histogram` and so on.
        samples: Number of each line, by the text before it: name and labels.
    """

    name: str
    help: str
    kind: str = "untyped"
    samples: dict[str, _Number] = field(default_factory=dict)


def read_families(text: str) -> list[Family]:
    """Reads the text format as `render` writes it: HELP, TYPE, then the samples without times."""
    families: list[Family] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, _, help_text = line[len("# HELP ") :].partition(" ")
            families.append(Family(name, help_text))
        elif line.startswith("# TYPE "):
            families[-1].kind = line.rpartition(" ")[2]
        elif line:
            key, _, number = line.rpartition(" ")
            families[-1].samples[key] = _number(number)
    return families


class MergedMetrics:
    """The last report of each worker, and the totals of those that ended."""

    def __init__(self) -> None:
        self._reports: dict[int, list[Family]] = {}
        self._ended: dict[str, Family] = {}

    def report(self, worker: int, text: str) -> None:
        """Takes the present metrics of a worker, in the text format."""
        self._reports[worker] = read_families(text)

    def retire(self, worker: int) -> None:
        """Keeps the totals of a worker that ended; another may come in its place."""
        for family in self._reports.pop(worker, ()):
            if family.kind not in _ADDED or family.name.startswith(_OF_A_PROCESS):
                continue
            total = self._ended.setdefault(family.name, Family(family.name, family.help, "untyped"))
            total.kind = family.kind
            for key, number in family.samples.items():
                total.samples[key] = total.samples.get(key, 0) + number
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        # Versions come and go for months: what has not been counted for longest goes first.
        surplus = sum(len(family.samples) for family in self._ended.values()) - _MAX_ENDED_SAMPLES
        for family in self._ended.values():
            for key in list(family.samples)[: max(0, surplus)]:
                del family.samples[key]
                surplus -= 1

    def families(self) -> Iterator[WrittenMetric]:
        """Yields the merged metrics."""
        merged: dict[str, Family] = {}
        for number, families in sorted(self._reports.items()):
            for family in families:
                into = merged.setdefault(family.name, Family(family.name, family.help, family.kind))
                _merge(into, family, number)
        for family in self._ended.values():
            into = merged.setdefault(family.name, Family(family.name, family.help, family.kind))
            _add(into, family.samples.items())
        for family in merged.values():
            lines = [f"{key} {_text(value)}\n" for key, value in family.samples.items()]
            yield WrittenMetric(family.name, family.help, family.kind, lines)


def _merge(into: Family, family: Family, worker: int) -> None:
    if family.name.startswith(_OF_A_PROCESS):
        for key, number in family.samples.items():
            into.samples[_labelled(key, worker)] = number
    elif family.kind == "gauge" and _FACTS.search(family.name):
        for key, number in family.samples.items():
            into.samples[key] = max(number, into.samples.get(key, number))
    else:
        _add(into, family.samples.items())


def _add(into: Family, samples: Iterable[tuple[str, _Number]]) -> None:
    for key, number in samples:
        into.samples[key] = into.samples.get(key, 0) + number


def _labelled(key: str, worker: int) -> str:
    name, _, labels = key.removesuffix("}").partition("{")
    return f"{name}{{{labels}{',' if labels else ''}{label('worker', str(worker))}}}"


def _number(text: str) -> _Number:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _text(number: _Number) -> str:
    return str(number if isinstance(number, int) else floatToGoString(number))  # type: ignore[no-untyped-call]
