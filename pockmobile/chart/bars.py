"""The contributions of layers: a bar for each option, grouped by layer, with intervals."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from pockmobile.chart.analysis import Bar, Metric
from pockmobile.chart.markup import Markup, element
from pockmobile.chart.svg import (
    RIGHT,
    SMALL,
    Scale,
    box,
    figure,
    hint,
    line,
    round_scale,
    shortened,
    x_axis,
)
from pockmobile.chart.units import gain_text, gain_unit, half_width_text

_NAMES: Final = 134.0  # the column of layers' names
_TOP: Final = 6.0
_AXIS: Final = 42.0
_GAP: Final = 2.0
_GROUP_GAP: Final = 9.0
_MARK: Final = 5.0
_THICKNESS: Final = {"bias": 5.0, "1/8": 3.0, "1/4": 5.0, "1/2": 7.0, "whole": 9.0}
_LAYERS: Final = 14  # at most in a chart, so that one fits on a screen or sheet

_Group = tuple[str, Sequence[Bar]]


def bar_charts(bars: Sequence[Bar], metric: Metric) -> list[Markup]:
    """Returns the charts, with about as many layers each and one scale for all."""
    groups = [(layer, list(found)) for layer, found in groupby(bars, lambda bar: bar.layer)]
    if not groups:
        return []
    scale = _scale(bars, metric)
    num_charts = math.ceil(len(groups) / _LAYERS)
    num_charts += num_charts % 2 if num_charts > 1 else 0  # they stand in two columns
    size = math.ceil(len(groups) / num_charts)
    return [
        _chart(groups[first : first + size], first, scale, metric)
        for first in range(0, len(groups), size)
    ]


def legend() -> Markup:
    """Returns the key to the bars."""
    keys = [
        ("weight", "a share of the weight, with the bias: the thicker, the larger the share"),
        ("bias", "the bias alone"),
        ("weight is-chosen", "filled: part of the plan"),
    ]
    items = [element("li", _key(kind), label) for kind, label in keys]
    cross = element("svg", *_cross(8, 7), viewBox="0 0 16 14", class_="key", aria_hidden="true")
    items.append(element("li", cross, "skipped by the first look, not measured"))
    return element("ul", *items, class_="legend")


def _key(kind: str) -> Markup:
    bar = box(1, 3.5, 14, 7, f"bar {kind}")
    return element("svg", bar, viewBox="0 0 16 14", class_="key", aria_hidden="true")


def _scale(bars: Sequence[Bar], metric: Metric) -> Scale:
    """Covers all gains and 0, and intervals as far as they leave the gains readable."""
    measured = [bar for bar in bars if _is_measured(bar)]
    gains = [0.0, *(bar.gain for bar in measured)]
    widths = [bar.half_width if math.isfinite(bar.half_width) else 0.0 for bar in measured]
    pairs = list(zip(gains[1:], widths, strict=True))
    low, high = min(gains), max(gains)
    spare = high - low or max(widths, default=0.0)
    low = max(min([low, *(gain - width for gain, width in pairs)]), low - spare)
    high = min(max([high, *(gain + width for gain, width in pairs)]), high + spare)
    factor = gain_unit(metric)[1]
    if low == high:
        return round_scale([low], _NAMES, RIGHT)
    return Scale(low * factor, high * factor, _NAMES + 4, RIGHT)


def _chart(groups: Sequence[_Group], first: int, scale: Scale, metric: Metric) -> Markup:
    parts: list[Markup] = []
    y = _TOP
    for layer, bars in groups:
        parts += _group(layer, bars, y, scale, metric)
        y += _height(bars)
    unit, _ = gain_unit(metric)
    axis = x_axis(scale, _TOP - 4, y, f"gain over the head alone ({unit})")
    zero = line(scale(0), _TOP - 4, scale(0), y, "zero")
    layers = f"layer {first + 1}"
    if len(groups) > 1:
        layers = f"layers {first + 1} to {first + len(groups)}"
    return figure(
        f"bars-{first + 1}",
        f"Gain, {layers}",
        _description(groups, metric),
        y + _AXIS,
        [*axis, *parts, zero],
    )


def _description(groups: Sequence[_Group], metric: Metric) -> str:
    bars = [bar for _, found in groups for bar in found if _is_measured(bar)]
    if not bars:
        return "None of these layers was measured. The last table has all numbers."
    best = max(bars, key=lambda bar: bar.gain)
    return (
        "Bars from 0 with 95 % intervals, layers in execution order. The largest gain is "
        f"{gain_text(metric, best.gain)}, of {best.layer} ({best.share_name}). "
        "The last table has all numbers."
    )


def _height(bars: Sequence[Bar]) -> float:
    height = sum(_thickness(bar) + _GAP for bar in bars) - _GAP
    return max(height, SMALL) + _GROUP_GAP


def _group(
    layer: str, bars: Sequence[Bar], top: float, scale: Scale, metric: Metric
) -> list[Markup]:
    middle = top + (_height(bars) - _GROUP_GAP) / 2
    shown = shortened(layer, _NAMES - 8, SMALL)
    kind = "small is-chosen" if any(bar.is_chosen for bar in bars) else "small"
    name = element(
        "text",
        hint(layer),
        shown,
        x=_NAMES - 8,
        y=middle + 4,
        text_anchor="end",
        class_=f"name {kind}",
    )
    parts = [name]
    y = middle - (sum(_thickness(bar) + _GAP for bar in bars) - _GAP) / 2
    for bar in bars:
        parts.append(_bar(bar, y, scale, metric))
        y += _thickness(bar) + _GAP
    return parts


def _bar(bar: Bar, top: float, scale: Scale, metric: Metric) -> Markup:
    thickness = _thickness(bar)
    middle = top + thickness / 2
    label = f"{bar.layer} {bar.share_name}: "
    if not _is_measured(bar):
        label += "skipped by the first look" if bar.is_screened else "diverged"
        return element("g", hint(label), *_cross(scale(0), middle), class_="screened")
    factor = gain_unit(metric)[1]
    zero, end = scale(0), scale(bar.gain * factor)
    label += f"{gain_text(metric, bar.gain)} {half_width_text(metric, bar.half_width)}"
    chosen = " is-chosen" if bar.is_chosen else ""
    kind = "bias" if bar.share_name == "bias" else "weight"
    return element(
        "g",
        hint(label + (", chosen" if bar.is_chosen else "")),
        box(min(zero, end), top, max(abs(end - zero), 0.5), thickness, f"bar {kind}{chosen}"),
        *_whisker(bar.gain * factor, bar.half_width * factor, middle, scale),
        class_=f"option{chosen}",
    )


def _whisker(gain: float, half_width: float, y: float, scale: Scale) -> list[Markup]:
    """An interval; where it runs out of the chart it has no cap."""
    if not math.isfinite(half_width):
        return []
    low, high = gain - half_width, gain + half_width
    caps = [
        line(scale(end), y - 2.5, scale(end), y + 2.5, "whisker")
        for end in (low, high)
        if scale.contains(end)
    ]
    return [line(scale(low), y, scale(high), y, "whisker"), *caps]


def _cross(x: float, y: float) -> list[Markup]:
    return [
        line(x - 2, y - 2, x + 2, y + 2, "mark"),
        line(x - 2, y + 2, x + 2, y - 2, "mark"),
    ]


def _is_measured(bar: Bar) -> bool:
    return not bar.is_screened and math.isfinite(bar.gain)


def _thickness(bar: Bar) -> float:
    return _THICKNESS.get(bar.share_name, _MARK) if _is_measured(bar) else _MARK
