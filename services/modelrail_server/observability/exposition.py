"""The text that a scrape gets, at a price that a server with thousands of series can pay.

prometheus-client spends about ten microseconds on each sample, most of it on labels, and all of it
with the interpreter's lock held, which requests wait for. Who has many series of the same labels
writes the lines by itself, as a `WrittenMetric`; everything else is left to prometheus-client.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["CONTENT_TYPE", "WrittenMetric", "label", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class WrittenMetric(Metric):
    """A family of metrics in the text format 0.0.4.

    Args:
        name: As it is shown: nothing is appended to it, whatever the kind.
        documentation: One line.
        kind: `counter`, `gauge` or `histogram`.
        lines: The samples, each with its line's end.
    """

    def __init__(self, name: str, documentation: str, kind: str, lines: Sequence[str]) -> None:
        # To others a counter without `_total` is untyped: they would append it.
        super().__init__(name, documentation, "unknown" if kind == "counter" else kind)
        self._kind = kind
        self._lines = lines

    @property
    def samples(self) -> list[Sample]:
        """The samples one by one, for readers that are not `render`."""
        text = f"# TYPE {self.name} {self.type}\n" + "".join(self._lines)
        (family,) = text_string_to_metric_families(text)
        return list(family.samples)

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        """Takes the empty list that `Metric` begins with."""

    def text(self) -> Iterable[str]:
        """Yields the family's lines."""
        yield f"# HELP {self.name} {self.documentation}\n# TYPE {self.name} {self._kind}\n"
        yield from self._lines


def label(name: str, value: str) -> str:
    """Returns `name="value"` with what the text format escapes in a value."""
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'


def render(registry: CollectorRegistry) -> bytes:
    """Returns everything in a registry in the text format 0.0.4."""
    others: list[Metric] = []
    text: list[str] = []
    for metric in registry.collect():
        if isinstance(metric, WrittenMetric):
            text.extend(metric.text())
        else:
            others.append(metric)
    return generate_latest(_Collected(others)) + "".join(text).encode()


@dataclass(frozen=True, slots=True)
class _Collected(Collector):
    """Metrics that were collected already."""

    metrics: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics
