"""The pictures of a page: all that is drawn lies within them, and shows the numbers."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pockmobile.chart import Bar, MemoryStep, Point
from pockmobile.chart.area import area_chart, peak_of
from pockmobile.chart.bars import bar_charts
from pockmobile.chart.channels import channel_charts, trained_text
from pockmobile.chart.scatter import memory_front, time_front
from pockmobile.chart.svg import (
    SMALL,
    WIDTH,
    Scale,
    round_scale,
    shortened,
    text_width,
    ticks,
)
from pockmobile.chart.units import MINUS
from tests.chart_example import example

FINITE = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-9)


def _charts(analysis_scale: float = 1.0) -> list[str]:
    analysis = example(scale=analysis_scale)
    return [
        *bar_charts(analysis.bars, "accuracy"),
        *channel_charts(analysis.chosen),
        area_chart(analysis.memory),
        memory_front(analysis.front_memory, "accuracy"),
        time_front(analysis.front_time, "loss"),
    ]


def _svg(chart: str) -> ET.Element:
    found = ET.fromstring(chart).find("svg")
    assert found is not None
    return found


def _corners(svg: ET.Element) -> Iterator[tuple[float, float]]:
    """The corners of all that is drawn; texts with their estimated width."""
    for node in svg.iter():
        at = {key: float(value) for key, value in node.items() if _is_number(value)}
        if node.tag == "line":
            yield from ((at["x1"], at["y1"]), (at["x2"], at["y2"]))
        elif node.tag == "rect":
            yield from ((at["x"], at["y"]),)
            yield (at["x"] + at["width"], at["y"] + at["height"])
        elif node.tag == "circle":
            yield from ((at["cx"] - at["r"], at["cy"] - at["r"]),)
            yield (at["cx"] + at["r"], at["cy"] + at["r"])
        elif node.tag == "text":
            shown = "".join([node.text or "", *(child.tail or "" for child in node)])
            width = text_width(shown, SMALL)
            share = {"start": 0.0, "middle": 0.5, "end": 1.0}[node.attrib["text-anchor"]]
            left = at["x"] - share * width
            yield from ((left, at["y"] - SMALL), (left + width, at["y"] + 3))
        elif node.tag == "path":
            yield from _path(node.attrib["d"])


def _is_number(value: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", value) is not None


def _path(d: str) -> Iterator[tuple[float, float]]:
    x = y = 0.0
    for command, rest in re.findall(r"([MLHVlZ])([^MLHVlZ]*)", d):
        numbers = [float(number) for number in rest.split()]
        if command in "ML":
            x, y = numbers
        elif command == "H":
            x = numbers[0]
        elif command == "V":
            y = numbers[0]
        elif command == "l":
            x, y = x + numbers[0], y + numbers[1]
        yield x, y


def _assert_within(chart: str) -> None:
    svg = _svg(chart)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    assert width == WIDTH
    corners = list(_corners(svg))
    assert corners
    for x, y in corners:
        assert -0.01 <= x <= width + 0.01, (x, y)
        assert -0.01 <= y <= height + 0.01, (x, y)


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 1e4])
def test_all_lies_within_the_picture(scale: float) -> None:
    for chart in _charts(scale):
        _assert_within(chart)


@given(
    st.lists(
        st.tuples(FINITE, st.floats(0, 1e9) | st.just(math.inf), st.booleans()), max_size=12
    )
)
def test_any_bars_lie_within(rows: list[tuple[float, float, bool]]) -> None:
    bars = [
        Bar(f"layer.{i // 2}", "bias" if i % 2 else "1/8", gain, half, False, screened, 2)
        for i, (gain, half, screened) in enumerate(rows)
    ]
    for chart in bar_charts(bars, "accuracy"):
        _assert_within(chart)


@given(st.lists(st.tuples(FINITE, st.integers(0, 10**13)), min_size=1, max_size=9))
def test_any_fronts_lie_within(rows: list[tuple[float, int]]) -> None:
    points = [
        Point("a plan with quite a long name, which is cut", gain, size, size / 1e6, i == 0)
        for i, (gain, size) in enumerate(rows)
    ]
    _assert_within(memory_front(points, "accuracy"))
    _assert_within(time_front(points, "loss"))


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=9))
def test_any_memory_lies_within(sizes: list[int]) -> None:
    steps = [MemoryStep("aten.a_rather_long_operator_name", size, "update") for size in sizes]
    _assert_within(area_chart(steps))
    assert sizes[peak_of(steps)] == max(sizes)


def _count(charts: list[str], kind: str, tag: str) -> int:
    nodes = [node for chart in charts for node in _svg(chart).iter(tag)]
    return sum(kind in str(node.get("class")).split() for node in nodes)


def test_bars_show_each_option() -> None:
    bars = example().bars
    charts: list[str] = [*bar_charts(bars, "accuracy")]
    num_screened = sum(bar.is_screened for bar in bars)
    assert _count(charts, "bar", "rect") == len(bars) - num_screened
    assert _count(charts, "screened", "g") == num_screened
    assert _count(charts, "is-chosen", "rect") == sum(bar.is_chosen for bar in bars)
    names = [
        title.text
        for chart in charts
        for node in _svg(chart).iter("text")
        for title in node.iter("title")
    ]
    assert names == list(dict.fromkeys(bar.layer for bar in bars))


def test_bars_are_as_long_as_their_gains() -> None:
    gains = [0.03, 0.01, -0.01]
    bars = [Bar("a", "1/8", gain, 0.001, False, False, 3) for gain in gains]
    rects = list(_svg(bar_charts(bars, "accuracy")[0]).iter("rect"))
    widths = [float(rect.attrib["width"]) for rect in rects]
    assert widths[0] / widths[1] == pytest.approx(3, rel=1e-2)
    assert widths[1] == pytest.approx(widths[2], rel=1e-2)
    zero = float(rects[0].attrib["x"])
    assert float(rects[2].attrib["x"]) + widths[2] == pytest.approx(zero, abs=0.02)


def test_wide_intervals_do_not_hide_gains() -> None:
    bars = [Bar("a", "1/8", 0.02, 5.0, False, False, 2)]
    svg = _svg(bar_charts(bars, "accuracy")[0])
    rect = next(svg.iter("rect"))
    assert float(rect.attrib["width"]) > 50
    whiskers = [node for node in svg.iter("line") if node.get("class") == "whisker"]
    assert len(whiskers) == 1  # without caps: it runs beyond the chart


def test_channels_show_the_window() -> None:
    layer = replace(example().chosen[0], num_channels=100, start=25, stop=75)
    strip, window, bias = _svg(channel_charts([layer])[0]).iter("rect")
    left, width = float(strip.attrib["x"]), float(strip.attrib["width"])
    assert float(window.attrib["x"]) == pytest.approx(left + width / 4, abs=0.02)
    assert float(window.attrib["width"]) == pytest.approx(width / 2, abs=0.02)
    assert "is-trained" in bias.attrib["class"]
    assert trained_text(layer) == "50 of 100 input channels, bias"
    assert trained_text(replace(layer, stop=25)) == "bias alone"
    assert trained_text(replace(layer, start=0, stop=100)) == "all 100 input channels, bias"


def test_memory_marks_the_peak_and_the_phases() -> None:
    svg = _svg(area_chart(example().memory))
    kinds = [node.attrib["class"] for node in svg.iter("path")]
    assert kinds == ["area forward", "area backward", "area update"]
    assert "The peak is 7.4 MB, at moment 70 " in str(svg[1].text)
    assert [node.text for node in svg.iter("text")][-1] == (
        "peak 7.4 MB, aten.convolution_backward"
    )
    tops = [y for node in svg.iter("path") for _, y in _path(node.attrib["d"])]
    peak = next(svg.iter("circle"))
    assert float(peak.attrib["cy"]) == pytest.approx(min(tops), abs=0.1)


def test_front_marks_the_chosen_plan() -> None:
    svg = _svg(memory_front(example().front_memory, "accuracy"))
    marked = [node for node in svg.iter("path") if "is-chosen" in node.attrib["class"]]
    assert len(marked) == 1
    assert [node.text for node in svg.iter("text")][-1] == "found"
    assert "Chosen: found: +8.9 points, 7.4 MB, 37 %" in str(svg[1].text)


@given(st.lists(FINITE, max_size=5))
def test_scales_are_round_and_hold_their_values(values: list[float]) -> None:
    scale = round_scale(values, 0, 100)
    slack = 1e-9 * (scale.high - scale.low) + 1e-12
    assert all(scale.low - slack <= value <= scale.high + slack for value in values)
    found = ticks(scale)
    assert 2 <= len(found) <= 9
    assert all(0 <= scale(value) <= 100 for value, _ in found)


def test_ticks() -> None:
    assert _labels(Scale(-0.3, 1.0, 0, 1)) == ["0.0", "0.5", "1.0"]
    assert _labels(Scale(-1, 1, 0, 1)) == [f"{MINUS}1.0", f"{MINUS}0.5", "0.0", "0.5", "1.0"]
    assert _labels(round_scale([0, 2400], 0, 1)) == [
        "0",
        "500",
        "1,000",
        "1,500",
        "2,000",
        "2,500",
    ]
    assert _labels(round_scale([0, 0.00031], 0, 1))[:3] == ["0", "0.0001", "0.0002"]
    assert _labels(round_scale([0, 4e6], 0, 1)) == ["0", "1e6", "2e6", "3e6", "4e6"]


def _labels(scale: Scale) -> list[str]:
    return [label for _, label in ticks(scale)]


def test_long_names_keep_their_end() -> None:
    assert shortened("layers.10.attention.query", 70, 12) == "…ion.query"
    assert shortened("head", 70, 12) == "head"


def test_the_line_of_a_front_never_falls() -> None:
    """The chosen plan may be none of the front's: measuring puts it first."""
    points = [
        Point("a", 0.1, 100, 0.1, is_chosen=False),
        Point("b", 0.05, 200, 0.2, is_chosen=True),
        Point("c", 0.2, 300, 0.3, is_chosen=False),
    ]
    svg = _svg(memory_front(points, "accuracy"))
    (line,) = (node for node in svg.iter("path") if node.attrib["class"] == "front")
    heights = [float(word[1:]) for word in line.attrib["d"].split() if word[0] == "V"]
    circles = [float(node.attrib["cy"]) for node in svg.iter("circle")]
    assert heights == pytest.approx(circles, abs=0.06)
