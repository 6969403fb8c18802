"""Charts as SVG elements of a page, whose style sheet has the colours."""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence

from lsrjax.training.report.elements import Element, tag

COLOURS, DASHES = 8, 3  # of the style sheet: .c0 …, .d0 …
_POINTS = 300  # drawn of a line
_WIDTH, _HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 16, 8, 26
# Values further apart than this are drawn on a logarithmic scale.
_FAR = 300


@dataclasses.dataclass(frozen=True)
class Line:
    """A named line of (x, y), x ascending; `notes` are shown at its points."""

    name: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()


def chart(
    title: str, lines: Sequence[Line], x: str = "step", *, far: bool = False
) -> Element:
    """Lines with axes, and a legend with their last values if there are several.

    Args:
      title: of the figure.
      lines: with at least one point each.
      x: what is on the horizontal axis.
      far: values that are far apart are drawn on a logarithmic scale.
    """
    every = [point for line in lines for point in line.points]
    across = _Scale.of([point[0] for point in every], _LEFT, _WIDTH - _RIGHT)
    up = _Scale.of([point[1] for point in every], _HEIGHT - _BOTTOM, _TOP, True, far)
    drawn = [
        _line(_thinned(line), _style(number), across, up)
        for number, line in enumerate(lines)
    ]
    svg = tag(
        "svg",
        _axes(across, up, x),
        drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=title,
    )
    scale = " (log scale)" if up.log else ""
    legend = None
    if len(lines) > 1:
        legend = tag("ul", map(_entry, itertools.count(), lines), class_="legend")
    return tag("figure", tag("figcaption", f"{title}{scale}"), svg, legend)


def number(value: float, digits: int = 3) -> str:
    """A short form of a number."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e15 or size < 1e-3:
        return re.sub(
            r"(\.0)?e([+-])0*", lambda m: f"e{m[2].strip('+')}", f"{value:.1e}"
        )
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= factor:
            return f"{value / (1e3 if unit == 'k' else factor):.{digits}g}{unit}"
    return f"{value:,.0f}" if size >= 1e3 else f"{value:.{digits}g}"


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Maps values to places in the picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        start: float,
        end: float,
        pad: bool = False,
        far: bool = False,
    ) -> "_Scale":
        low, high = min(values), max(values)
        log = far and low > 0 and high / low > _FAR
        if low == high:
            room = abs(low) / 2 or 1.0
            low, high = low - room, high + room
        elif pad and not log:
            room = (high - low) * 0.04
            # A share or a count is not drawn below nothing.
            low, high = (
                (0.0 if 0 <= low < (high - low) / 4 else low - room),
                high + room,
            )
        return cls(low, high, start, end, log)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        if self.log:
            first = math.floor(math.log10(self.low))
            last = math.ceil(math.log10(self.high))
            step = math.ceil((last - first) / 6)
            powers = [10.0**power for power in range(first, last + 1, step)]
            return [tick for tick in powers if self.low <= tick <= self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step_size = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough)
        first = math.ceil(self.low / step_size - 1e-9)
        last = math.floor(self.high / step_size + 1e-9)
        return [tick * step_size for tick in range(first, last + 1)]


def _axes(across: _Scale, up: _Scale, x: str) -> Iterator[Element]:
    for tick in up.ticks():
        y = up(tick)
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        label = number(tick, 4)
        yield tag("text", label, x=_LEFT - 6, y=y + 4, class_="tick up")
    floor = _HEIGHT - _BOTTOM
    yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor, class_="axis")
    for tick in across.ticks():
        yield tag("text", number(tick, 4), x=across(tick), y=floor + 16, class_="tick")
    yield tag("text", x, x=_LEFT - 10, y=floor + 16, class_="tick up")


def _line(line: Line, style: str, across: _Scale, up: _Scale) -> Iterator[Element]:
    places = [(across(x), up(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x} {y}" for x, y in places)
    yield tag("path", tag("title", line.name), d=path, class_=f"line {style}")
    if line.notes or len(places) < 20:
        notes: Sequence[str] = line.notes or [number(y) for _, y in line.points]
        for (x, y), note in zip(places, notes, strict=True):
            said = tag("title", f"{line.name}: {note}")
            yield tag("circle", said, cx=x, cy=y, r=2.5, class_=style.split()[0])


def _entry(place: int, line: Line) -> Element:
    sample = tag("path", d="M0 5L18 5", class_=f"line {_style(place)}")
    svg = tag("svg", sample, viewBox="0 0 18 10", class_="sample", aria_hidden="true")
    return tag("li", svg, line.name, " ", tag("b", number(line.points[-1][1])))


def _style(place: int) -> str:
    return f"c{place % COLOURS} d{place // COLOURS % DASHES}"


def _thinned(line: Line) -> Line:
    """The line, or means of neighbouring points."""
    size = math.ceil(len(line.points) / _POINTS)
    if size < 2:
        return line
    mean: Callable[[Sequence[float]], float] = lambda some: sum(some) / len(some)  # noqa: E731
    points = [
        (mean([x for x, _ in some]), mean([y for _, y in some]))
        for start in range(0, len(line.points), size)
        for some in [line.points[start : start + size]]
    ]
    return Line(line.name, points)
