"""Charts as SVG that needs nothing beside it; colours come from the page's style.

Every text goes through `escape`: names and labels are what somebody else wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from modelrail.report.scale import Scale, shown

WIDTH, HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 34, 46
_MOST_POINTS = 400

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: For the legend.
        points: x and y, x ascending.
        style: Class of the page's style: `train` or `validation`.
    """

    name: str
    points: Sequence[Point]
    style: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes of a chart, and what stands along them."""

    title: str
    x: Scale
    y: Scale
    x_label: str
    y_label: str

    def at(self, point: Point) -> Point:
        """Returns the place of a point in the picture."""
        return (
            _LEFT + self.x.place(point[0]) * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - self.y.place(point[1]) * (HEIGHT - _TOP - _BOTTOM),
        )

    def draw(self, *content: Markup) -> Markup:
        """Returns the picture with something in the frame."""
        inside = Markup("").join([*self._axes(), *content])
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
        ).format(WIDTH, HEIGHT, self.title, inside)

    def _axes(self) -> Iterator[Markup]:
        left, bottom = _LEFT, HEIGHT - _BOTTOM
        for tick in self.y.ticks:
            _, y = self.at((self.x.low, tick))
            yield _segment("grid", (left, y), (WIDTH - _RIGHT, y))
            yield _text(shown(tick), left - 6, y + 4, "tick end")
        for tick in self.x.ticks:
            x, _ = self.at((tick, self.y.low))
            yield _segment("grid", (x, _TOP), (x, bottom))
            yield _text(shown(tick), x, bottom + 16, "tick middle")
        yield _segment("axis", (left, bottom), (WIDTH - _RIGHT, bottom))
        yield _segment("axis", (left, _TOP), (left, bottom))
        yield _text(self.x_label, (left + WIDTH - _RIGHT) / 2, HEIGHT - 8, "label middle")
        middle = (_TOP + bottom) / 2
        yield Markup(
            '<text class="label middle" transform="translate(14 {:.1f}) rotate(-90)">{}</text>'
        ).format(middle, escape(self.y_label))


def line_chart(frame: Frame, lines: Sequence[Line], *, best: Point | None = None) -> Markup:
    """Draws lines, with a legend above and a mark at the best point."""
    content: list[Markup] = []
    x = float(_LEFT)
    for line in lines:
        points = [frame.at(point) for point in thinned(line.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        content.append(Markup('<polyline class="line {}" points="{}"/>').format(line.style, path))
        if len(points) <= 30:
            content += [_circle(f"dot {line.style}", point, 2.2) for point in points]
        content.append(_segment(f"line {line.style}", (x, 16), (x + 20, 16)))
        content.append(_text(line.name, x + 26, 20, "legend"))
        x += 46 + 7 * len(line.name)
    if best is not None:
        place = frame.at(best)
        content.append(_segment("best", (place[0], _TOP), (place[0], HEIGHT - _BOTTOM)))
        content.append(_circle("bestdot", place, 4.5))
        content.append(_circle("bestdot", (x + 8, 16), 4.5))
        content.append(_text("best epoch", x + 18, 20, "legend"))
    return frame.draw(*content)


def bar_chart(frame: Frame, bars: Sequence[tuple[float, float, float]]) -> Markup:
    """Draws bars, each from x to x with a height y, standing on y = 0."""
    return frame.draw(*(_bar(frame, bar) for bar in bars))


def reliability_chart(
    frame: Frame, bars: Sequence[tuple[float, float, float]], points: Sequence[Point]
) -> Markup:
    """Draws accuracy over probability as bars, with points at the means and the diagonal."""
    return frame.draw(
        *(_bar(frame, bar) for bar in bars),
        _diagonal(frame),
        *(_circle("dot train", frame.at(point), 3.5) for point in points),
    )


def scatter_chart(frame: Frame, points: Sequence[Point]) -> Markup:
    """Draws points, and the diagonal on which they should lie."""
    return frame.draw(
        _diagonal(frame), *(_circle("spot", frame.at(point), 2.5) for point in points)
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """Returns few enough points to draw: of each stretch the lowest and the highest."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = -(-len(points) * 2 // _MOST_POINTS)
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        extremes = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(extremes)
    return [*kept, points[-1]]


def _diagonal(frame: Frame) -> Markup:
    low = max(frame.x.low, frame.y.low)
    high = min(frame.x.high, frame.y.high)
    return _segment("diagonal", frame.at((low, low)), frame.at((high, high)))


def _bar(frame: Frame, bar: tuple[float, float, float]) -> Markup:
    lower, upper, height = bar
    left, top = frame.at((lower, height))
    right, bottom = frame.at((upper, max(0.0, frame.y.low)))
    return Markup(
        '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
    ).format(left + 0.5, top, max(right - left - 1, 0.5), max(bottom - top, 0))


def _segment(style: str, start: Point, end: Point) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        style, *start, *end
    )


def _circle(style: str, point: Point, radius: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(
        style, *point, radius
    )


def _text(text: str, x: float, y: float, style: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, text)
