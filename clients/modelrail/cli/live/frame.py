"""One picture of a job, as high and wide as the terminal allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group
from rich.text import Text

from modelrail.cli.live.plot import Trace, plotted
from modelrail.report import History
from modelrail.report.chart import thinned
from modelrail.report.scale import shown
from modelrail.report.tables import duration
from modelrail.report.visible import on_one_line, visible
from modelrail.trainer.v1 import trainer_pb2 as pb

_COLOURS = {"train": "yellow", "validation": "bright_blue"}
_LEAST_PLOT, _MOST_PLOT = 4, 12
_LOG_LINES = 6
_MOST_WIDTH = 120
_EPOCH = re.compile(r"epoch +\d+/")
_FULL, _EMPTY = "━", "─"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a picture is made for.

    Attributes:
        width: Columns of the terminal.
        height: Its lines.
        now: The time, in UTC.
    """

    width: int
    height: int
    now: datetime


def frame(job: pb.TrainingJob, history: History, state: str, look: Look) -> Group:
    """Returns a picture of a job, never higher or wider than the terminal.

    Args:
        job: Its name and specification; what changes comes from the history.
        history: What its events told so far.
        state: Its state in words.
        look: What the picture is made for.
    """
    width = min(look.width, _MOST_WIDTH)
    head = [_title(job, state), *_progress(history, look, width), *_figures(history)]
    traces = _traces(history)
    # The last line stays free: a terminal that is written to its end scrolls.
    room = look.height - 1 - len(head)
    # The figures of an epoch stand above.
    said = [text for _, text in history.log if not _EPOCH.match(text)]
    log_lines = min(len(said), _LOG_LINES, max(room - 1, 0))
    plot_lines = min(room - log_lines - 3, _MOST_PLOT)
    plot: list[Text] = []
    if traces and plot_lines >= _LEAST_PLOT and width >= 40:
        plot = [_legend(history), *plotted(traces, width=width, height=plot_lines)]
    log = [Text("")] if log_lines else []
    log += [Text(visible(text), style="dim") for text in said[len(said) - log_lines :]]
    lines = [*head, *plot, *log]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return Group(*lines[: max(look.height - 1, 1)])


def _title(job: pb.TrainingJob, state: str) -> Text:
    title = Text(on_one_line(job.spec.display_name or job.name), style="bold")
    title.append(f"  {state}", style="cyan")
    if job.spec.display_name:
        title.append(f"  {job.name}", style="dim")
    return title


def _progress(history: History, look: Look, width: int) -> Iterator[Text]:
    progress = history.progress
    if progress is None or not progress.epochs:
        return
    share = _share(history, progress)
    facts = [f"epoch {progress.epoch}/{progress.epochs}", f"{share:.0%}"]
    if progress.rows_per_second:
        facts.append(f"{shown(progress.rows_per_second)} rows/s")
    if (left := seconds_left(history, look.now)) is not None:
        facts.append(f"about {duration(round(left))} left")
    text = "  ".join(facts)
    bar_width = max(10, min(40, width - len(text) - 2))
    full = round(share * bar_width)
    line = Text(_FULL * full, style="green")
    line.append(_EMPTY * (bar_width - full), style="dim")
    line.append(f"  {text}", style="default")
    yield line


def _share(history: History, progress: pb.Progress) -> float:
    """Returns how much of the training is done, in [0, 1]."""
    if history.steps_per_epoch:
        return min(1.0, progress.step / history.steps_per_epoch / progress.epochs)
    return progress.epoch / progress.epochs


def seconds_left(history: History, now: datetime) -> float | None:
    """Returns the time until training ends; None when it is not known, or it does not train."""
    progress = history.progress
    if progress is None or not progress.HasField("eta") or history.reported is None:
        return None
    if not history.phases or history.phases[-1].state != pb.TrainingJob.STATE_RUNNING:
        return None
    # A clock that is behind the trainer's shortens nothing.
    since = max(0.0, (now - history.reported).total_seconds())
    return max(0.0, progress.eta.ToTimedelta().total_seconds() - since)


def _figures(history: History) -> Iterator[Text]:
    for split in ("train", "validation"):
        found = [
            f"{name} {shown(curve.by_step[max(curve.by_step)])}"
            for (part, name), curve in history.curves.items()
            if part == split
        ]
        if found:
            line = Text(f"{split:<11}", style=_COLOURS[split])
            line.append(on_one_line("  ".join(found)), style="default")
            yield line


def _traces(history: History) -> list[Trace]:
    unit = history.steps_per_epoch or 1.0
    return [
        Trace(
            thinned([(step / unit, value) for step, value in sorted(curve.by_step.items())]),
            colour,
        )
        for split, colour in _COLOURS.items()
        if (curve := history.curves.get((split, "loss"))) is not None
    ]


def _legend(history: History) -> Text:
    legend = Text("loss", style="dim")
    for split, colour in _COLOURS.items():
        if (split, "loss") in history.curves:
            legend.append(f"  ⣀⠤⠒⠉ {split}", style=colour)
    return legend
