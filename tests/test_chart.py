"""The page on an analysis: well-formed, self-contained, complete, and readable."""

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from pockmobile.chart import Analysis, Bar, MemoryStep, PlanRow, Point, render_analysis
from pockmobile.chart.page import answer
from pockmobile.chart.style import DARK, LIGHT
from tests.chart_example import example

EMPTY = replace(
    example(), bars=(), front_memory=(), front_time=(), plans=(), memory=(), chosen=()
)
SINGLE = replace(
    example(),
    bars=example().bars[:1],
    front_memory=example().front_memory[6:7],
    front_time=example().front_time[:1],
    plans=example().plans[:1],
    memory=example().memory[:1],
    chosen=example().chosen[:1],
)
ANALYSES = {
    "accuracy": example(),
    "loss": example(52, "loss"),
    "empty": EMPTY,
    "single": SINGLE,
    "flat": example(scale=0.0),
    "large": example(3, scale=1e4),
    "tiny": example(3, scale=1e-6),
}


@pytest.fixture(params=ANALYSES)
def analysis(request: pytest.FixtureRequest) -> Analysis:
    return ANALYSES[request.param]


def _parsed(analysis: Analysis) -> ET.Element:
    page = render_analysis(analysis)
    assert page.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def _words(root: ET.Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


def test_needs_nothing_beside_it(analysis: Analysis) -> None:
    page = render_analysis(analysis)
    root = _parsed(analysis)
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
    names = {node.tag for node in root.iter()}
    assert not names & {"script", "img", "link", "iframe", "object", "image", "use"}


def test_is_the_same_twice(analysis: Analysis) -> None:
    assert render_analysis(analysis) == render_analysis(analysis)


def test_order_of_contents(analysis: Analysis) -> None:
    assert [node.text for node in _parsed(analysis).iter("h2")] == [
        "The evidence",
        "What each layer contributes",
        "The chosen channels",
        "Memory over a step",
        "Gain against cost",
        "All contributions",
    ]


def test_every_chart_is_described(analysis: Analysis) -> None:
    root = _parsed(analysis)
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    for chart in root.iter("svg"):
        if chart.get("aria-hidden") == "true":  # a key beside its words
            continue
        assert chart.get("role") == "img"
        title, description = chart[0], chart[1]
        assert (title.tag, description.tag) == ("title", "desc")
        assert title.text
        assert description.text
        named = str(chart.get("aria-labelledby")).split()
        assert named == [title.get("id"), description.get("id")]


def test_tables_are_whole(analysis: Analysis) -> None:
    for table in _parsed(analysis).iter("table"):
        header = table.findall("thead/tr/th")
        assert all(cell.get("scope") == "col" for cell in header)
        for row in table.findall("tbody/tr"):
            assert row[0].get("scope") == "row"
            assert len(row) == len(header)


def test_all_layers_are_named_and_the_chosen_marked() -> None:
    analysis = example()
    table = list(_parsed(analysis).iter("table"))[-1]
    rows = [[cell.text or "" for cell in row] for row in table.findall("tbody/tr")]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        (bar.layer, bar.share_name, "chosen" if bar.is_chosen else "") for bar in analysis.bars
    ]
    runs = [row[4] for row in rows]
    assert runs == ["screened" if bar.is_screened else "3" for bar in analysis.bars]
    classes = [row.get("class") for row in table.findall("tbody/tr")]
    assert classes == ["chosen" if bar.is_chosen else "plain" for bar in analysis.bars]


def test_evidence() -> None:
    table = next(_parsed(example()).iter("table"))
    rows = [[cell.text for cell in row] for row in table.findall("tbody/tr")]
    assert rows[0] == ["found (chosen)", "83.9 ± 0.6 %", "5", "7.4 MB", "37 %", "412.3 kB"]
    assert rows[3] == ["full", "84.2 ± 0.5 %", "5", "41.6 MB", "100 %", "1.6 MB"]
    loss = _words(next(_parsed(example(metric="loss")).iter("table")))
    assert "Held-out loss, lower is better" in loss
    assert "3.703 ± 0.006 nats" in loss


def test_answer() -> None:
    assert answer(example()).replace("\xa0", " ") == (
        "The plan found trains 6 of 34 layers beside the head, needs 7.4 MB (18 % of full's) a "
        "step beside frozen weights and 37 % of full fine-tuning's step time, and reaches an "
        "accuracy of 83.9 ± 0.6 %: 0.3 points worse than full fine-tuning (a difference "
        "within the intervals) and 5.8 points better than the head alone."
    )
    assert answer(EMPTY) == "No plan was chosen."
    assert answer(SINGLE).replace("\xa0", " ").endswith("an accuracy of 83.9 ± 0.6 %.")
    assert "a loss of 3.703" in answer(example(metric="loss"))


def test_empty_page_says_so() -> None:
    root = _parsed(EMPTY)
    assert _words(root).count("There is nothing to show.") == 6
    assert not list(root.iter("svg"))


def test_text_is_escaped() -> None:
    bad = "<b>&\"'\x00</b><script>"
    base = example()
    analysis = replace(
        base,
        model=bad,
        budget_text=bad,
        bars=tuple(replace(bar, layer=bad) for bar in base.bars[:3]),
        front_memory=tuple(replace(point, name=bad) for point in base.front_memory),
        plans=tuple(replace(row, name=bad) for row in base.plans),
        memory=tuple(replace(step, label=bad) for step in base.memory),
        chosen=tuple(replace(layer, layer=bad, dim_name=bad) for layer in base.chosen),
    )
    names = {node.tag for node in _parsed(analysis).iter()}
    assert not names & {"b", "script"}
    assert "<b>&\"'\N{REPLACEMENT CHARACTER}</b>" in _words(_parsed(analysis))


def test_what_diverged_or_ran_once() -> None:
    bars = (
        Bar("a", "whole", math.nan, math.nan, False, False, 2),
        Bar("b", "whole", 0.01, math.inf, True, False, 1),
    )
    plans = (
        PlanRow("found", 0.8, math.inf, 1, 1000, 0.5, 10, True),
        PlanRow("full", math.nan, math.nan, 2, 0, math.nan, 10, False),
    )
    point = Point("p", math.nan, 0, 0.0, False)
    step = MemoryStep("add", 0, "forward")
    analysis = replace(
        EMPTY,
        bars=bars,
        plans=plans,
        front_memory=(point,),
        front_time=(point,),
        memory=(step,),
    )
    page = render_analysis(analysis)
    words = _words(_parsed(analysis)).replace("\xa0", " ")
    assert "an accuracy of 80.0 %." in words
    assert "a whole: diverged" in words
    assert ">nan" not in page
    assert '"nan' not in page


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_contrast(colours: dict[str, str]) -> None:
    for behind in ("paper", "shade"):
        for name in ("ink", "muted"):  # text: WCAG 2 asks for 4.5
            assert _contrast(colours[name], colours[behind]) >= 4.5
    for name in ("blue", "orange", "green"):  # graphics: it asks for 3
        assert _contrast(colours[name], colours["paper"]) >= 3


def _contrast(first: str, second: str) -> float:
    low, high = sorted([_luminance(first), _luminance(second)])
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
