"""What the charts share: their width, scales, axes with round ticks, text that fits."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from pockmobile.chart.markup import Markup, element
from pockmobile.chart.units import MINUS

WIDTH: Final = 400.0
"""Width of every chart, in its own units: narrow, so that it reads on a phone."""

LEFT: Final = 54.0
"""Where a chart's area starts, right of the numbers of its vertical axis."""

RIGHT: Final = WIDTH - 24
"""Where it ends, so that the last number below it fits."""

SMALL: Final = 12.0
_CHARACTER: Final = 0.56  # a character's width in its font's size, on average
_TICKS: Final = 5
_LEAST_SPAN: Final = 0.05  # of the largest value, so that ticks have few digits
_INTEGER_SLACK: Final = 1e-9

Anchor = Literal["start", "middle", "end"]


@final
@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto coordinates from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Returns the coordinate of a value; what lies outside is put at the border."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def contains(self, value: float) -> bool:
        """Whether a value lies within the scale."""
        return self.low <= value <= self.high


def round_scale(values: Iterable[float], start: float, stop: float) -> Scale:
    """Returns a scale for the values, which ends at ticks."""
    low, high = min(values := list(values), default=0.0), max(values, default=0.0)
    largest = max(abs(low), abs(high))
    if low == high:  # a single value stands in the middle; 0 alone is the start
        low, high = low - largest / 2, high + (largest / 2 or 1.0)
    missing = max(_LEAST_SPAN * largest - (high - low), 0.0)
    low, high = low - missing / 2, high + missing / 2
    step = _step(low, high)
    return Scale(
        math.floor(low / step + _INTEGER_SLACK) * step,
        math.ceil(high / step - _INTEGER_SLACK) * step,
        start,
        stop,
    )


def ticks(scale: Scale) -> list[tuple[float, str]]:
    """Returns round values within the scale, each as it is written."""
    step = _step(scale.low, scale.high)
    first = math.ceil(scale.low / step - _INTEGER_SLACK)
    last = math.floor(scale.high / step + _INTEGER_SLACK)
    values = [number * step for number in range(first, last + 1)]
    return [(value, _tick_label(value, step)) for value in values]


def _tick_label(value: float, step: float) -> str:
    """The value with the digits that the step has, or as `2e6` where those are too many."""
    decimals = max(0, -math.floor(math.log10(step) + _INTEGER_SLACK))
    if 1e-3 <= step <= 1e3:
        return f"{value:,.{decimals}f}".replace("-", MINUS)
    short = f"{value:.3g}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")
    return short.replace("-", MINUS)


def _step(low: float, high: float) -> float:
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def x_axis(scale: Scale, top: float, bottom: float, title: str) -> list[Markup]:
    """Returns grid lines, numbers and title of a horizontal axis below `bottom`."""
    parts = [
        part
        for value, label in ticks(scale)
        for part in (
            line(scale(value), top, scale(value), bottom, "grid"),
            text(scale(value), bottom + 16, label, "middle", "small"),
        )
    ]
    middle = (scale.start + scale.stop) / 2
    return [*parts, text(middle, bottom + 34, title, "middle", "small")]


def y_axis(scale: Scale, left: float, right: float, title: str) -> list[Markup]:
    """Returns grid lines, numbers and title of a vertical axis; the title stands above."""
    parts = [
        part
        for value, label in ticks(scale)
        for part in (
            line(left, scale(value), right, scale(value), "grid"),
            text(left - 6, scale(value) + 4, label, "end", "small"),
        )
    ]
    return [*parts, text(0, min(scale.start, scale.stop) - 14, title, "start", "small")]


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Returns a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def box(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """Returns a rectangle."""
    return element("rect", x=x, y=y, width=width, height=height, class_=class_)


def text(x: float, y: float, content: str, anchor: Anchor, class_: str) -> Markup:
    """Returns a line of text whose base line is at `y`."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def text_width(content: str, size: float) -> float:
    """Returns about how wide a text is."""
    return len(content) * _CHARACTER * size


def shortened(content: str, width: float, size: float) -> str:
    """Returns the text, or its end, which tells layers apart, if it is too wide."""
    num_characters = max(int(width / (_CHARACTER * size)), 2)
    return (
        content
        if len(content) <= num_characters
        else "…" + content[len(content) - num_characters + 1 :]
    )


def hint(content: str) -> Markup:
    """Returns what a mouse over the element around it shows."""
    return element("title", content)


def figure(
    key: str, title: str, description: str, height: float, children: Sequence[str]
) -> Markup:
    """Returns a chart, with the title and description that a screen reader speaks.

    `key` tells it from the page's other charts.
    """
    picture = element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        *children,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )
    return element("figure", element("figcaption", title), picture)
