"""A picture of a sweep: latency against throughput."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelrail.bench.report import BenchReport, SweepReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PlotError", "check_plot", "plot_sweep"]

_ENDINGS = (".png", ".svg")
_LOG_SPAN = 20.0
_CURVES = (("p50", "p50_seconds", "o"), ("p99", "p99_seconds", "s"), ("p99.9", "p999_seconds", "^"))


class PlotError(ValueError):
    """A picture that cannot be drawn; the message says what is missing."""


def check_plot(path: Path) -> None:
    """Returns when a picture can be drawn at `path`, without drawing one.

    Raises:
        PlotError: The ending is neither PNG nor SVG, the folder is missing or takes no file, or
            matplotlib is missing.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise PlotError(f"{path}: expected a name that ends in {' or '.join(_ENDINGS)}")
    if not path.parent.is_dir():
        raise PlotError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise PlotError(f"{path}: expected a file, got a folder")
    if not path.exists() and not os.access(path.parent, os.W_OK):
        raise PlotError(f"{path}: the folder {path.parent} cannot be written to")
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError(
            "plots need the package matplotlib, which is not installed:"
            " pip install 'modelrail[bench]'"
        )


def plot_sweep(sweep: SweepReport, path: Path) -> None:
    """Draws latency against throughput, with a mark for each load, and saves the picture.

    Loads under which nothing was answered are left out; a part of the requests that failed or were
    not sent stands beside a load, as `32 (5% lost)`.

    Args:
        sweep: What to draw.
        path: Where to save; its ending says whether PNG or SVG.

    Raises:
        PlotError: See `check_plot`; or nothing was answered under any load.
        OSError: The file cannot be written.
    """
    check_plot(path)
    points = [point for point in sweep.points if point.latency is not None]
    if not points:
        raise PlotError(f"{path}: no request succeeded, so there is nothing to draw")
    figure = _draw(points, sweep.varies)
    try:
        figure.savefig(path)
    except OSError as error:
        # A write that fails, unlike an opening, does not say which file it was.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _draw(points: Sequence[BenchReport], varies: str) -> Figure:
    # Here, so that only who draws needs it. A Figure of its own touches no state of pyplot.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    rates = [point.requests_per_second for point in points]
    lowest, highest = float("inf"), 0.0
    for label, name, marker in _CURVES:
        values = [_milliseconds(point, name) for point in points]
        axes.plot(rates, values, marker=marker, label=label)
        lowest, highest = min(lowest, *values), max(highest, *values)
        if name == "p99_seconds":
            for point, rate, value in zip(points, rates, values, strict=True):
                axes.annotate(
                    _mark(point),
                    (rate, value),
                    xytext=(6, -12),
                    textcoords="offset points",
                    fontsize=8,
                )
    if highest > _LOG_SPAN * lowest:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1.08 * (max(rates) or 1.0))
    axes.set_xlabel("throughput (requests/s)")
    axes.set_ylabel("latency (ms)")
    first = points[0]
    kind = "ModelStreamInfer" if first.streaming else "ModelInfer"
    axes.set_title(f"{first.model}: {kind}, by {varies}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return figure


def _mark(point: BenchReport) -> str:
    # Latencies are those of answers alone: good ones may come of dropping all others.
    lost = f" ({point.error_rate * 100:.3g}% lost)" if point.lost else ""
    return f"{point.load_value:g}{lost}"


def _milliseconds(point: BenchReport, name: str) -> float:
    return float(getattr(point.latency, name)) * 1e3
