"""Curves in characters: each cell of the terminal holds two by four dots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text

from modelrail.report.scale import of_curve, shown, tight

_EMPTY = 0x2800
# Bits of the dots of a Braille character, by column and row.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_MARGIN = 9


@dataclass(frozen=True, slots=True)
class Trace:
    """One curve: its points, x ascending, and its colour."""

    points: Sequence[tuple[float, float]]
    colour: str


def plotted(traces: Sequence[Trace], *, width: int, height: int) -> list[Text]:
    """Returns `height` lines of `width` characters: a scale on the left, and the curves.

    Where two curves share a cell, it has the colour of the later one.
    """
    ys = [y for trace in traces for _, y in trace.points]
    xs = [x for trace in traces for x, _ in trace.points]
    scale, across = of_curve(ys), tight(0.0, max(xs))
    columns = width - _MARGIN - 2
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for trace in traces:
        before: tuple[int, int] | None = None
        for x, y in trace.points:
            dot = (
                round(across.place(x) * (2 * columns - 1)),
                round((1 - scale.place(y)) * (4 * height - 1)),
            )
            for column, row in _line(before or dot, dot):
                cell = (row // 4, column // 2)
                bits = cells.get(cell, (0, ""))[0] | _DOTS[column % 2][row % 4]
                cells[cell] = (bits, trace.colour)
            before = dot
    lines = []
    for row in range(height):
        label = {0: shown(scale.high), height - 1: shown(scale.low)}.get(row, "")
        line = Text(f"{label:>{_MARGIN}} ", style="dim", no_wrap=True)
        line.append("┤" if label else "│", style="dim")
        for column in range(columns):
            bits, colour = cells.get((row, column), (0, ""))
            line.append(chr(_EMPTY + bits) if bits else " ", style=Style.parse(colour))
        lines.append(line)
    return lines


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the dots of a straight line."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (
            round(start[0] + (end[0] - start[0]) * step / steps),
            round(start[1] + (end[1] - start[1]) * step / steps),
        )
        for step in range(steps + 1)
    ]
