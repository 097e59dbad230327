"""Objectives for a load test, such as `p99<20ms`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from modelrail.bench.report import BenchReport

__all__ = ["Objective", "ObjectiveError"]

_FORM = re.compile(
    r"\s*(?P<metric>[a-z0-9. _-]*?)\s*(?P<sign><=|>=|<|>)\s*(?P<number>\d+(?:\.\d+)?)\s*"
    r"(?P<unit>\S*)\s*",
    re.IGNORECASE,
)
_LATENCIES = {
    "p50": "p50_seconds",
    "p90": "p90_seconds",
    "p99": "p99_seconds",
    "p99.9": "p999_seconds",
    "mean": "mean_seconds",
}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES = {"": 1.0, "/s": 1.0}
_PARTS = {"": 1.0, "%": 0.01}
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EXPECTED = (
    "expected METRIC<VALUE like p99<20ms: p50, p90, p99, p99.9 or mean with us, ms or s;"
    " throughput>500 (requests/s); or error_rate<1%"
)


class ObjectiveError(ValueError):
    """A text that is no objective; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A bound on one figure of a report.

    In latencies, requests that failed or were not sent count as slower than any bound: p99 is
    missed when they are more than 1 % of what was due, the mean as soon as there is one.
    """

    metric: str
    """`p50`, `p90`, `p99`, `p99.9`, `mean`, `throughput` or `error_rate`."""
    sign: str
    """`<`, `<=`, `>` or `>=`."""
    bound: float
    """In seconds, in requests a second, or as a part of 1."""
    text: str
    """As it was written."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `p99<20ms`, `throughput >= 500` or `error_rate<0.1%`.

        Raises:
            ObjectiveError: It is something else, or bounds the figure on the wrong side.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ObjectiveError(f"{text!r}: {_EXPECTED}")
        metric = re.sub(r"[ -]", "_", match["metric"].lower())
        if metric in _LATENCIES:
            units, is_upper = _SECONDS, True
        elif metric == "throughput":
            units, is_upper = _RATES, False
        elif metric == "error_rate":
            units, is_upper = _PARTS, True
        else:
            raise ObjectiveError(f"{text!r}: got the metric {match['metric']!r}; {_EXPECTED}")
        unit = match["unit"].lower()
        if unit not in units:
            known = ", ".join(name or "no unit" for name in units)
            raise ObjectiveError(f"{text!r}: {metric}: expected one of {known}, got {unit!r}")
        if (match["sign"][0] == "<") != is_upper:
            sides = "< or <=" if is_upper else "> or >="
            raise ObjectiveError(f"{text!r}: {metric}: expected {sides}, got {match['sign']}")
        return cls(metric, match["sign"], float(match["number"]) * units[unit], text.strip())

    def value(self, report: BenchReport) -> float | None:
        """Returns the figure that is bounded; None when it is a latency that nothing bounds."""
        if self.metric == "throughput":
            return report.requests_per_second
        if self.metric == "error_rate":
            return report.error_rate
        latency = report.due_latency
        return None if latency is None else getattr(latency, _LATENCIES[self.metric])

    def is_met(self, report: BenchReport) -> bool:
        """Whether the report keeps to the bound; a latency that nothing bounds does not."""
        value = self.value(report)
        return value is not None and _COMPARE[self.sign](value, self.bound)

    def shown(self, report: BenchReport) -> str:
        """Returns what came of it, in one line: `p99<20ms: 12.3 ms, met`."""
        verdict = "met" if self.is_met(report) else "missed"
        remark = self.remark(report)
        why = f" ({remark})" if remark else ""
        return f"{self.text}: {self._figure(report)}, {verdict}{why}"

    def remark(self, report: BenchReport) -> str | None:
        """Returns how many requests count as slower than any bound; None where none does."""
        if self.metric not in _LATENCIES or not report.lost:
            return None
        return (
            f"{report.lost:,} of {report.due:,} requests failed or unsent,"
            " counted as slower than any bound"
        )

    def _figure(self, report: BenchReport) -> str:
        value = self.value(report)
        if value is None:
            if not report.due:
                return "nothing was measured"
            return "unbounded" if report.succeeded else "no request succeeded"
        if self.metric == "throughput":
            return f"{value:.1f}/s"
        if self.metric == "error_rate":
            return f"{value:.2%}"
        return f"{value * 1e3:.3f} ms"
