"""The metrics of all workers as those of one server.

Counters and histograms are added up over the workers, the ended ones included, so that no counter
goes back when one is replaced. A version that no worker serves any more is gone with all of its
totals: what stayed of them would look like a restart, and be counted anew. Gauges are added up as
well, except facts, of which every worker tells the same: there the largest is shown. What describes
a process gets the label `worker`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.utils import floatToGoString

from modelrail_server.observability.exposition import WrittenMetric, label

__all__ = ["Family", "MergedMetrics", "read_families"]

_OF_A_PROCESS = ("process_", "python_")
_FACTS = re.compile(r"_info$|_duration_secs$|_loaded_versions$|_file_bytes$|^nv_[cg]pu_")
_ADDED = frozenset({"counter", "histogram", "summary"})
_MODEL = re.compile(r'[{,](model="(?:[^"\\]|\\.)*")')
_VERSION = re.compile(r'[{,](version="[^"]*")')

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

    def without_samples(self) -> Family:
        """Returns the same metric with no line."""
        return Family(self.name, self.help, self.kind)


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
    """The last report of each worker, and the totals of those that ended.

    The totals of a version are kept while a worker serves it: what they take is bounded by that.
    """

    def __init__(self) -> None:
        self._reports: dict[int, dict[str, Family]] = {}
        self._ended: dict[str, dict[str, Family]] = {}
        """By version, as its two labels, or "" for what belongs to none; then by name."""

    def report(self, worker: int, text: str) -> None:
        """Takes the present metrics of a worker, in the text format."""
        now = {family.name: family for family in read_families(text)}
        before = self._reports.get(worker, {})
        self._reports[worker] = now
        # A worker that unloads a version is like one that ends: the others may still serve it.
        self._keep(before, now)
        for version in [version for version in self._ended if not self._is_served(version)]:
            del self._ended[version]

    def retire(self, worker: int) -> None:
        """Keeps the totals of a worker that ended; another may come in its place."""
        self._keep(self._reports.pop(worker, {}), {})

    def forget(self, model: str) -> None:
        """Drops what was counted of the versions of a model, by ended workers or others.

        What a worker reported last goes as well: it would be kept as of one that ended as soon as
        the worker reports without the model.
        """
        label_of_model = label("model", model)
        labels = f"{label_of_model},"
        for version in [version for version in self._ended if version.startswith(labels)]:
            del self._ended[version]
        for report in self._reports.values():
            for family in report.values():
                # The first look is the quick one: there are many samples, and few are meant.
                for key in [key for key in family.samples if label_of_model in key]:
                    if _version_of(key).startswith(labels):
                        del family.samples[key]

    def _keep(self, before: Mapping[str, Family], now: Mapping[str, Family]) -> None:
        for family in before.values():
            if family.kind not in _ADDED or family.name.startswith(_OF_A_PROCESS):
                continue
            still = now[family.name].samples if family.name in now else {}
            for key, number in family.samples.items():
                if key not in still:
                    families = self._ended.setdefault(_version_of(key), {})
                    total = families.setdefault(family.name, family.without_samples())
                    total.samples[key] = total.samples.get(key, 0) + number

    def _is_served(self, version: str) -> bool:
        """Whether a worker shows any of these totals; those of no version stay for good."""
        return not version or any(
            not family.samples.keys().isdisjoint(report[family.name].samples)
            for family in self._ended[version].values()
            for report in self._reports.values()
            if family.name in report
        )

    def families(self) -> Iterator[WrittenMetric]:
        """Yields the merged metrics."""
        merged: dict[str, Family] = {}
        for number, report in sorted(self._reports.items()):
            for family in report.values():
                _merge(merged.setdefault(family.name, family.without_samples()), family, number)
        for totals in self._ended.values():
            for family in totals.values():
                into = merged.setdefault(family.name, family.without_samples())
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


def _version_of(key: str) -> str:
    """Returns the labels of the version that a sample belongs to; empty when it belongs to none."""
    model, version = _MODEL.search(key), _VERSION.search(key)
    return f"{model[1]},{version[1]}" if model and version else ""


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
