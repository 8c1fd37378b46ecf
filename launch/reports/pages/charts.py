"""Charts as SVG within a page: lines, points, bars and steps. Colours and dashes are classes of the
page's style sheet, for light and dark; what a point is shows when the pointer rests on it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from launch.reports.pages.axes import (
    Axis,
    linear_axis,
    logarithmic_axis,
    named_axis,
    number_text,
    whole_axis,
)

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
MOST_POINTS = 60  # of a line that are marked one by one
COLOURS = 7  # in the style sheet


@dataclass(frozen=True)
class Series:
    """One line or cloud of points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()  # half the width of a band around a line
    notes: Sequence[str] = ()  # of each point, for the pointer


@dataclass(frozen=True)
class Chart:
    """A drawing with its words."""

    title: str
    svg: str
    legend: tuple[tuple[str, int], ...] = ()  # name, number of its colour
    note: str = ""


@dataclass
class Canvas:
    """Pieces of SVG within two axes."""

    x: Axis
    y: Axis
    pieces: list[str] = field(default_factory=list)

    def frame(self, x_label: str, y_label: str) -> None:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for tick, text in zip(self.y.ticks, self.y.tick_labels(), strict=True):
            place = self.y.place(tick)
            self.pieces.append(
                f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>'
            )
            self.text(LEFT - 6, place + 4, text, "tick end")
        for tick, text in zip(self.x.ticks, self.x.tick_labels(), strict=True):
            place = self.x.place(tick)
            self.pieces.append(
                f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="{bottom}" '
                f'y2="{bottom + 4}"/>'
            )
            self.text(place, bottom + 17, text, "tick middle")
        self.pieces.append(
            f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        )
        self.text((LEFT + right) / 2, HEIGHT - 6, x_label, "label middle")
        if y_label:
            middle = (TOP + bottom) / 2
            self.pieces.append(
                f'<text class="label middle" transform="translate(12 {middle:.0f}) rotate(-90)">'
                f"{html.escape(y_label)}</text>"
            )

    def text(self, x: float, y: float, text: str, kind: str) -> None:
        escaped = html.escape(text)
        self.pieces.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escaped}</text>')

    def line(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """A line with a gap wherever a value is not finite."""
        parts: list[list[str]] = [[]]
        for one, other in zip(x, y, strict=True):
            if not math.isfinite(other):
                parts.append([])
                continue
            parts[-1].append(f"{self.x.place(one):.1f},{self.y.place(other):.1f}")
        for part in parts:
            if len(part) > 1:
                self.pieces.append(f'<polyline class="{kind}" points="{" ".join(part)}"/>')

    def point(self, x: float, y: float, kind: str, note: str, radius: float = 3) -> None:
        if not math.isfinite(y):
            return
        self.pieces.append(
            f'<circle class="{kind}" cx="{self.x.place(x):.1f}" cy="{self.y.place(y):.1f}" '
            f'r="{radius:g}"><title>{html.escape(note)}</title></circle>'
        )

    def upright(self, x: float, text: str) -> None:
        """A marked place of the x axis."""
        place = self.x.place(x)
        self.pieces.append(
            f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/>'
        )
        is_right = place > WIDTH * 0.6
        self.text(
            place + (-4 if is_right else 4), TOP + 9, text, "tick end" if is_right else "tick"
        )

    def level(self, y: float, text: str) -> None:
        """A marked value of the y axis."""
        place = self.y.place(y)
        self.pieces.append(
            f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" '
            f'y2="{place:.1f}"/>'
        )
        self.text(LEFT + 4, place - 4, text, "tick")

    def svg(self, description: str) -> str:
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{html.escape(description, quote=True)}">{"".join(self.pieces)}</svg>'
        )


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str = "",
    *,
    mark: tuple[float, str] | None = None,
    level: tuple[float, str] | None = None,
    logarithmic: bool = False,
    whole_x: bool = True,
    note: str = "",
) -> Chart:
    """Lines over epochs, or over another quantity.

    Args:
        mark: a place of the x axis, with a word. level: likewise of the y axis.
        logarithmic: the y axis; values of 0 or less leave a gap.
    """
    all_x = [value for one in series for value in one.x]
    all_y = [value for one in series for value in one.y]
    for one in series:
        for value, half in zip(one.y, one.spread, strict=False):
            all_y += [value - half, value + half]
    if level is not None:
        all_y.append(level[0])
    left, right = LEFT, WIDTH - RIGHT
    x = (
        whole_axis(int(min(all_x)), int(max(all_x)), left, right)
        if whole_x
        else linear_axis(all_x, left, right)
    )
    make = logarithmic_axis if logarithmic else linear_axis
    canvas = Canvas(x, make(all_y, HEIGHT - BOTTOM, TOP + 14))
    canvas.frame(x_label, y_label)
    if mark is not None:
        canvas.upright(*mark)
    if level is not None:
        canvas.level(*level)
    for number, one in enumerate(series):
        _draw_line(canvas, one, number % COLOURS, logarithmic)
    legend = tuple((one.name, number % COLOURS) for number, one in enumerate(series))
    return Chart(title, canvas.svg(_described(title, series)), legend, note)


def _draw_line(canvas: Canvas, one: Series, colour: int, logarithmic: bool) -> None:
    y = [value if value > 0 or not logarithmic else math.nan for value in one.y]
    if one.spread:
        upper = [value + half for value, half in zip(y, one.spread, strict=True)]
        lower = [value - half for value, half in zip(y, one.spread, strict=True)]
        corners = [*zip(one.x, upper, strict=True), *reversed([*zip(one.x, lower, strict=True)])]
        places = [
            f"{canvas.x.place(a):.1f},{canvas.y.place(b):.1f}"
            for a, b in corners
            if math.isfinite(b)
        ]
        canvas.pieces.append(f'<polygon class="band c{colour}" points="{" ".join(places)}"/>')
    canvas.line(one.x, y, f"line c{colour}")
    if len(y) <= MOST_POINTS:
        for number, (a, b) in enumerate(zip(one.x, y, strict=True)):
            note = f"{one.name} at {number_text(a)}: {b:.5g}"
            if one.notes:
                note = one.notes[number]
            canvas.point(a, b, f"point c{colour}", note, 2.5)


def scatter_chart(
    title: str,
    series: Series,
    x_label: str,
    y_label: str,
    *,
    diagonal: bool = False,
    level: tuple[float, str] | None = None,
    note: str = "",
) -> Chart:
    """Points; with a diagonal both axes have one range."""
    values = [*series.x, *series.y] if diagonal else []
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    x = linear_axis(values or series.x, left, right)
    y = linear_axis(values or [*series.y, *([level[0]] if level else [])], bottom, TOP)
    canvas = Canvas(x, y)
    canvas.frame(x_label, y_label)
    if diagonal:
        canvas.line([x.low, x.high], [y.low, y.high], "mark")
    if level is not None:
        canvas.level(*level)
    for number, (a, b) in enumerate(zip(series.x, series.y, strict=True)):
        note_of_point = series.notes[number] if series.notes else f"{a:.4g}, {b:.4g}"
        canvas.point(a, b, "cloud c0", note_of_point, 2.6)
    return Chart(title, canvas.svg(_described(title, [series])), (), note)


def bar_chart(
    title: str,
    names: Sequence[str],
    values: Sequence[float],
    x_label: str,
    y_label: str,
    *,
    notes: Sequence[str] = (),
    level: tuple[float, str] | None = None,
    note: str = "",
) -> Chart:
    """One bar for each name, from zero."""
    all_y = [0.0, *values, *([level[0]] if level else [])]
    canvas = Canvas(
        named_axis(names, LEFT, WIDTH - RIGHT), linear_axis(all_y, HEIGHT - BOTTOM, TOP)
    )
    canvas.frame(x_label, y_label)
    width = 0.7 * (WIDTH - RIGHT - LEFT) / max(1, len(names))
    zero = canvas.y.place(0.0)
    for number, value in enumerate(values):
        if not math.isfinite(value):
            continue
        top = min(zero, canvas.y.place(value))
        height = abs(zero - canvas.y.place(value))
        said = notes[number] if notes else f"{names[number]}: {value:.4g}"
        canvas.pieces.append(
            f'<rect class="bar" x="{canvas.x.place(number) - width / 2:.1f}" y="{top:.1f}" '
            f'width="{width:.1f}" height="{max(height, 0.5):.1f}">'
            f"<title>{html.escape(said)}</title></rect>"
        )
    if level is not None:
        canvas.level(*level)
    told = ", ".join(
        f"{name} {number_text(value)}" for name, value in zip(names, values, strict=True)
    )
    return Chart(title, canvas.svg(f"{title}: {told}"), (), note)


def step_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    ticks: Sequence[float],
    note: str = "",
) -> Chart:
    """Shares that rise by steps over a logarithmic axis, such as of pairs within a rank."""
    all_x = [value for one in series for value in one.x] + list(ticks)
    x = logarithmic_axis(all_x, LEFT, WIDTH - RIGHT, ticks)
    canvas = Canvas(x, linear_axis([0.0, 1.0], HEIGHT - BOTTOM, TOP))
    canvas.frame(x_label, y_label)
    for number, one in enumerate(series):
        stairs_x, stairs_y = [], []
        for index, (a, b) in enumerate(zip(one.x, one.y, strict=True)):
            if index:
                stairs_x.append(a)
                stairs_y.append(one.y[index - 1])
            stairs_x.append(a)
            stairs_y.append(b)
        canvas.line(stairs_x, stairs_y, f"line c{number % COLOURS}")
    legend = tuple((one.name, number % COLOURS) for number, one in enumerate(series))
    return Chart(title, canvas.svg(_described(title, series)), legend, note)


def _described(title: str, series: Sequence[Series]) -> str:
    """What the drawing shows, for those who do not see it."""
    said = []
    for one in list(series)[:8]:
        finite = [value for value in one.y if math.isfinite(value)]
        if finite:
            said.append(
                f"{one.name} from {number_text(finite[0])} to {number_text(finite[-1])}, "
                f"least {number_text(min(finite))}, most {number_text(max(finite))}"
            )
    return f"{title}: {'; '.join(said)}" if said else title
