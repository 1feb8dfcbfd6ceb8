"""Pareto fronts: predicted gain against what a plan costs, with the chosen plan marked."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from pockmobile.artifact.report import human_bytes
from pockmobile.chart.analysis import Metric, Point
from pockmobile.chart.markup import Markup, element
from pockmobile.chart.svg import (
    LEFT,
    RIGHT,
    SMALL,
    figure,
    hint,
    round_scale,
    shortened,
    text,
    text_width,
    x_axis,
    y_axis,
)
from pockmobile.chart.units import byte_unit, gain_text, gain_unit, percent_text

_TOP, _BOTTOM, _HEIGHT = 34.0, 260.0, 300.0
_MARK: Final = 7.0

_Placed = tuple[float, float, Point]


def memory_front(points: Sequence[Point], metric: Metric) -> Markup:
    """Returns gain against memory; there must be a point at least."""
    unit, num_bytes = byte_unit(point.memory_bytes for point in points)
    costs = [point.memory_bytes / num_bytes for point in points]
    title = "Predicted gain against memory"
    return _chart("front-memory", title, f"memory of a step ({unit})", points, costs, metric)


def time_front(points: Sequence[Point], metric: Metric) -> Markup:
    """Returns gain against step time; there must be a point at least."""
    costs = [point.step_ratio * 100 for point in points]
    title = "Predicted gain against step time"
    return _chart("front-time", title, "step time (% of full's)", points, costs, metric)


def _chart(
    key: str,
    title: str,
    cost_title: str,
    points: Sequence[Point],
    costs: Sequence[float],
    metric: Metric,
) -> Markup:
    unit, factor = gain_unit(metric)
    gains = [point.gain * factor if math.isfinite(point.gain) else 0.0 for point in points]
    x = round_scale(costs, LEFT, RIGHT)
    y = round_scale(gains, _BOTTOM, _TOP)
    placed = sorted(
        [
            (x(cost), y(gain), point)
            for cost, gain, point in zip(costs, gains, points, strict=True)
        ],
        key=lambda mark: (mark[0], -mark[1], mark[2].name),
    )
    marks = sorted(placed, key=lambda mark: mark[2].is_chosen)  # the chosen on top
    parts = [
        *y_axis(y, LEFT, RIGHT, f"predicted gain ({unit})"),
        *x_axis(x, _TOP, _BOTTOM, cost_title),
        element("path", d=_stairs(placed), class_="front"),
        *(part for mark in marks for part in _mark(mark, metric)),
    ]
    return figure(key, title, _description(points, metric), _HEIGHT, parts)


def _stairs(placed: Sequence[_Placed]) -> str:
    """What is reached up to a cost: the next plan counts only from its own cost on."""
    tops = accumulate((y for _, y, _ in placed), min)
    corners = [(x, top) for (x, _, _), top in zip(placed, tops, strict=True)]
    x, y = corners[0]
    return f"M{x:.1f} {y:.1f}" + "".join(f" H{x:.1f} V{y:.1f}" for x, y in corners[1:])


def _mark(mark: _Placed, metric: Metric) -> list[Markup]:
    x, y, point = mark
    words = hint(_words(point, metric))
    if not point.is_chosen:
        return [element("circle", words, cx=x, cy=y, r=3.5, class_="point")]
    diamond = f"M{x:.1f} {y - _MARK:.1f} l{_MARK:g} {_MARK:g} l{-_MARK:g} {_MARK:g} "
    diamond += f"l{-_MARK:g} {-_MARK:g} Z"
    return [element("path", words, d=diamond, class_="point is-chosen"), _label(x, y, point)]


def _label(x: float, y: float, point: Point) -> Markup:
    """The name, right below: the front rises to the right."""
    name = shortened(point.name, 200, SMALL)
    at = min(x + 9, RIGHT - text_width(name, SMALL))
    return text(at, y + 18 if y + 24 < _BOTTOM else y - 12, name, "start", "small label")


def _description(points: Sequence[Point], metric: Metric) -> str:
    chosen = [f"Chosen: {_words(point, metric)}." for point in points if point.is_chosen]
    best = max(points, key=lambda point: point.gain)
    num_plans = "1 plan" if len(points) == 1 else f"{len(points):,} plans"
    return " ".join([f"{num_plans}.", *chosen, f"Largest gain: {_words(best, metric)}."])


def _words(point: Point, metric: Metric) -> str:
    return (
        f"{point.name}: {gain_text(metric, point.gain)}, {human_bytes(point.memory_bytes)}, "
        f"{percent_text(point.step_ratio)} of full's step time"
    )
