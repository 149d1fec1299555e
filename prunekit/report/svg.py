"""Drawings as inline SVG: bars per block, bars with names, lines, and points with the Pareto front.

They carry no colours of their own: classes are styled by the page, so that one drawing serves light, dark and paper.
Drawings are 360 wide, so that their letters are readable on a phone; pages stretch them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 360.0, 46.0, 10.0, 16.0, 34.0
NEAR = 12.0  # two labels this near to each other cannot be read
LOG_FROM = 20.0  # where the largest of some positive numbers is so many times their median, the scale is logarithmic


@dataclass(frozen=True)
class Drawing:
    """What is inside an SVG element; the page writes the element itself, and gives it a name."""

    width: float
    height: float
    body: Markup


@dataclass(frozen=True)
class Bar:
    """A named bar; `low` and `high` end its interval, `reference` says that it is what others are compared with."""

    name: str
    value: float
    shown: str
    low: float | None = None
    high: float | None = None
    reference: bool = False


@dataclass(frozen=True)
class Point:
    """A point with a short label; `low` and `high` end its interval across, those on the front are joined by a line."""

    label: str
    x: float
    y: float
    front: bool = False
    reference: bool = False
    low: float | None = None
    high: float | None = None


def block_bars(values: Sequence[float], labels: Sequence[int], struck: Sequence[int], unit: str = "") -> Drawing:
    """One upright bar per block; those in `struck` are hatched and crossed, so that no colour is needed to see it."""
    height, scale = 190.0, _Scale.of(values)
    width = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    foot = height - BOTTOM
    parts = _value_axis(scale, foot, unit)
    every = max(1, math.ceil(len(values) / 12))
    for place, (value, label) in enumerate(zip(values, labels, strict=True)):
        x, y = LEFT + place * width, _up(scale(value), foot)
        gone = label in struck
        parts.append(
            Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                "bar gone" if gone else "bar", x + 0.1 * width, y, 0.8 * width, foot - y
            )
        )
        if gone:
            parts.append(_text(x + width / 2, y - 4, "\N{MULTIPLICATION SIGN}", "cross", "middle"))
        if place % every == 0:
            parts.append(_text(x + width / 2, foot + 14, str(label), "tick", "middle"))
    parts.append(_text((LEFT + WIDTH) / 2, height - 4, "block" + _log_note(scale), "axis", "middle"))
    return _drawing(parts, height)


def named_bars(bars: Sequence[Bar]) -> Drawing:
    """Bars that lie, each under its name, with its figure and the ends of its interval."""
    row, ends = 38.0, [end for bar in bars for end in (bar.value, bar.high or bar.value) if math.isfinite(end)]
    longest = max(max(ends, default=1.0), 1e-12)
    room = WIDTH - 12
    parts: list[Markup] = []

    def x(value: float) -> float:
        return 6 + room * max(0.0, min(1.0, value / longest))

    for number, bar in enumerate(bars):
        y = 4 + number * row
        parts.append(_text(6, y + 11, _short(bar.name, 38), "name"))
        parts.append(_text(WIDTH - 6, y + 11, bar.shown, "figure", "end"))
        if not math.isfinite(bar.value):
            continue
        kind = "bar reference" if bar.reference else "bar"
        shape = '<rect class="{}" x="6" y="{:.1f}" width="{:.1f}" height="12"/>'
        parts.append(Markup(shape).format(kind, y + 16, max(1.0, x(bar.value) - 6)))
        if bar.low is not None and bar.high is not None:
            line = (
                '<path class="interval" d="M{0:.1f} {2:.1f}V{3:.1f}M{0:.1f} {4:.1f}H{1:.1f}M{1:.1f} {2:.1f}V{3:.1f}"/>'
            )
            parts.append(Markup(line).format(x(bar.low), x(bar.high), y + 17, y + 27, y + 22))
    return _drawing(parts, 8 + row * len(bars))


def lines(curves: Sequence[Sequence[float]], across: str, upward: str, ends: tuple[str, str]) -> Drawing:
    """A line through the positive numbers of each curve, evenly from left to right; later ones are drawn darker.

    `ends` says what stands at the left and the right end. Upward the scale is logarithmic.
    """
    height = 220.0
    foot = height - BOTTOM
    flat = [value for curve in curves for value in curve if 0 < value < math.inf] or [1.0]
    scale = _Scale(min(flat), max(flat), True)
    parts = _value_axis(scale, foot, "")
    for number, curve in enumerate(curves, 1):
        room = (WIDTH - LEFT - RIGHT) / max(1, len(curve) - 1)
        steps = [
            f"{LEFT + room * place:.1f} {_up(scale(value), foot):.1f}"
            for place, value in enumerate(curve)
            if 0 < value < math.inf
        ]
        if steps:
            shape = '<path class="line" stroke-opacity="{:.2f}" d="M{}"/>'
            parts.append(Markup(shape).format(0.25 + 0.75 * number / len(curves), "L".join(steps)))
    parts.append(_text(LEFT, foot + 14, ends[0], "tick"))
    parts.append(_text(WIDTH - RIGHT, foot + 14, ends[1], "tick", "end"))
    parts.append(_text((LEFT + WIDTH) / 2, height - 4, f"{across}; upward: {upward}", "axis", "middle"))
    return _drawing(parts, height)


def scatter(points: Sequence[Point], across: str, upward: str, unit: Callable[[float], str] = "{:g}".format) -> Drawing:
    """Points with labels; those on the front are filled and joined, what they are compared with is a diamond."""
    height = 250.0
    foot = height - BOTTOM - 6
    ends = [end for point in points for end in (point.x, point.low, point.high) if end is not None]
    xs, ys = _Scale.around(ends), _Scale.around([point.y for point in points])

    def along(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT - 24) * xs(value)

    def place(point: Point) -> tuple[float, float]:
        return along(point.x), _up(ys(point.y), foot)

    parts = [*_value_axis(ys, foot, "")]
    parts += [_text(along(value), foot + 14, unit(value), "tick", "middle") for value in xs.ticks()]
    front = sorted(place(point) for point in points if point.front)
    if len(front) > 1:
        parts.append(Markup('<path class="front" d="M{}"/>').format("L".join(f"{x:.1f} {y:.1f}" for x, y in front)))
    for point in points:
        if point.low is not None and point.high is not None:
            line = '<path class="interval" d="M{0:.1f} {2:.1f}v6m0 -3H{1:.1f}m0 -3v6"/>'
            parts.append(Markup(line).format(along(point.low), along(point.high), place(point)[1] - 3))
    for point in points:
        x, y = place(point)
        if point.reference:
            shape = '<path class="reference" d="M{0:.1f} {1:.1f}l5 5l-5 5l-5 -5z"/>'
            parts.append(Markup(shape).format(x, y - 5))
        else:
            shape = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>'
            parts.append(Markup(shape).format("point best" if point.front else "point", x, y))
    for x, y, label in _labels(points, place):
        end = x > 0.7 * WIDTH  # a label on the right reaches to the left
        parts.append(_text(x - 7 if end else x + 7, y - 6, label, "name", "end" if end else "start"))
    parts.append(_text((LEFT + WIDTH) / 2, height - 6, across, "axis", "middle"))
    parts.append(_text(4, 10, upward, "axis"))
    return _drawing(parts, height)


def _labels(points: Sequence[Point], place: Callable[[Point], tuple[float, float]]) -> list[tuple[float, float, str]]:
    """Where labels stand; points that are too near to each other share one."""
    groups: list[tuple[float, float, list[str]]] = []
    for point in points:
        x, y = place(point)
        near = next((group for group in groups if abs(group[0] - x) < NEAR and abs(group[1] - y) < NEAR), None)
        if near:
            near[2].append(point.label)
        else:
            groups.append((x, y, [point.label]))
    return [(x, y, ", ".join(labels)) for x, y, labels in groups]


@dataclass(frozen=True)
class _Scale:
    """Numbers to shares of the height, 0 at the foot."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float]) -> "_Scale":
        """From zero, or logarithmic where a few numbers would leave nothing to see of the others."""
        known = sorted(value for value in values if math.isfinite(value)) or [1.0]
        middle = known[len(known) // 2]
        if known[0] > 0 and known[-1] > LOG_FROM * middle:
            return cls(known[0] / 1.5, known[-1], True)
        return cls(min(0.0, known[0]), max(known[-1], 1e-12))

    @classmethod
    def around(cls, values: Sequence[float]) -> "_Scale":
        """With some room on both sides."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room)

    def __call__(self, value: float) -> float:
        if not math.isfinite(value):
            return 1.0 if value == math.inf else 0.0
        if self.log:
            return _log_share(value, self.low, self.high)
        return max(0.0, min(1.0, (value - self.low) / max(self.high - self.low, 1e-300)))

    def ticks(self) -> list[float]:
        """A few round numbers within it."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            decades = [10.0**power for power in powers if self.low <= 10.0**power <= self.high]
            return decades[:: max(1, len(decades) // 4)] or [self.high]
        raw = (self.high - self.low) / 4
        step = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _value_axis(scale: _Scale, foot: float, unit: str) -> list[Markup]:
    """Grid lines with their numbers."""
    parts: list[Markup] = []
    for value in scale.ticks():
        y = _up(scale(value), foot)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(_text(LEFT - 5, y + 3.5, f"{value:g}{unit}", "tick", "end"))
    return parts


def _up(share: float, foot: float) -> float:
    return foot - (foot - TOP) * share


def _log_share(value: float, low: float, high: float) -> float:
    if value <= 0 or high <= low:
        return 0.0
    return max(0.0, min(1.0, math.log(value / low) / math.log(high / low)))


def _log_note(scale: _Scale) -> str:
    return " (logarithmic scale)" if scale.log else ""


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Markup:
    shape = '<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
    return Markup(shape).format(kind, x, y, anchor, text)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _drawing(parts: Sequence[Markup], height: float) -> Drawing:
    return Drawing(WIDTH, height, Markup("").join(parts))
