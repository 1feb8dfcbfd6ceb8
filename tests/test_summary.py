"""What is told of findings: for the HTML report, and as text."""

from dataclasses import replace

import pytest

from pockmobile.chart import ChosenLayer, render_analysis
from pockmobile.cost import Estimate, Moment
from pockmobile.plan import Layer, UpdatePlan
from pockmobile.planner import Evidence, Findings
from pockmobile.planner.summary import summarize
from pockmobile.planner.text import render_text
from pockmobile.search import Budget, Candidate, Cost, SearchResult
from pockmobile.sensitivity import Contribution, Outcome, Sensitivity
from pockmobile.space import Selection, UpdateSpace, update_space

LAYERS = [
    Layer("stem", "", "convolution", "stem.weight", ""),
    Layer("bn", "", "norm", "bn.weight", "bn.bias"),
    Layer("deep", "", "convolution", "deep.weight", "deep.bias"),
    Layer("norm", "", "norm", "norm.weight", "norm.bias"),
    Layer("last", "", "linear", "last.weight", "last.bias"),
    Layer("head", "", "linear", "head.weight", "head.bias"),
]
SHAPES = {
    "stem.weight": (16, 8, 3, 3), "bn.weight": (16,), "bn.bias": (16,),
    "deep.weight": (16, 1, 3, 3), "deep.bias": (16,),
    "norm.weight": (16,), "norm.bias": (16,),
    "last.weight": (4, 16), "last.bias": (4,), "head.weight": (2, 4), "head.bias": (2,),
}  # fmt: skip
SPACE: UpdateSpace = update_space([layer for layer in LAYERS if layer.path != "norm"], SHAPES)
MOMENTS = [
    Moment(f"layer {number}", 5000 if number == 777 else number, "forward")
    for number in range(1000)
]


def estimate(state_bytes: int) -> Estimate:
    return Estimate(100, 10, state_bytes, 0.5, {}, MOMENTS)


def evidence(name: str, selection: Selection, ratio: float, *metrics: float) -> Evidence:
    outcomes = tuple(Outcome(metric, 1.0) for metric in metrics)
    cost = Cost(int(1000 * ratio), ratio)
    return Evidence(name, selection, cost, estimate(int(400 * ratio)), outcomes)


def number_of(layer: str, share: str) -> int:
    """The number of an option in a selection."""
    found = next(options for options in SPACE.layers if options.layer == layer)
    return 1 + [option.share_name for option in found.options].index(share)


def selection(**shares: str) -> Selection:
    return tuple(
        number_of(layer.layer, shares[layer.layer]) if layer.layer in shares else 0
        for layer in SPACE.layers
    )


def findings(chosen: Selection, num_points: int = 100) -> Findings:
    """What an analysis may have found, with a long front and a long step."""
    contributions = tuple(
        Contribution(option.name, 0.01, 0.002, 2, option.share == 0.5)
        for option in SPACE.options
    )
    front = tuple(
        Candidate(selection(stem="bias"), place / 100, Cost(300 + place, 0.3 + place / 500))
        for place in range(num_points)
    )
    found = evidence("found 1", chosen, 0.4, 0.91, 0.93)
    rows = (
        found,
        evidence("head", SPACE.frozen, 0.1, 0.80, 0.82),
        evidence("full", selection(stem="whole", deep="whole", last="whole"), 1.0, 0.92, 0.94),
    )
    sensitivity = Sensitivity("accuracy", 0.5, 0.81, contributions, 3.0)
    return Findings(
        SPACE.plan(chosen), found, 412, rows, SPACE, SHAPES, sensitivity,
        SearchResult((), front, front, 100), Budget(10_000, 0.5), 80, 20, 65.0,
    )  # fmt: skip


CHOSEN = selection(stem="1/4", deep="1/2", last="bias")


def test_the_facts() -> None:
    analysis = summarize(findings(CHOSEN), "Net")
    assert analysis.model == "Net"
    assert (analysis.metric, analysis.start_metric, analysis.head_metric) == (
        "accuracy", 0.5, 0.81,
    )  # fmt: skip
    assert analysis.budget_text == "0.01 MB and 0.5 of a full step's time"
    assert (analysis.num_train, analysis.num_eval, analysis.num_repeats) == (80, 20, 2)
    assert analysis.seconds == 65.0


def test_bars_stand_in_execution_order_with_the_chosen_ones_marked() -> None:
    bars = summarize(findings(CHOSEN), "Net").bars
    assert [(bar.layer, bar.share_name) for bar in bars[:5]] == [
        ("stem", share) for share in ("bias", "1/8", "1/4", "1/2", "whole")
    ]
    assert len(bars) == len(SPACE.options)
    assert [(bar.layer, bar.share_name) for bar in bars if bar.is_chosen] == [
        ("stem", "1/4"), ("deep", "1/2"), ("last", "bias"),
    ]  # fmt: skip
    assert {bar.share_name for bar in bars if bar.is_screened} == {"1/2"}


@pytest.mark.parametrize(
    ("layer", "share", "expected"),
    [
        ("stem", "bias", ChosenLayer("stem", 8, 0, 0, "input channels", True)),
        ("stem", "1/4", ChosenLayer("stem", 8, 0, 2, "input channels", True)),
        ("stem", "whole", ChosenLayer("stem", 8, 0, 8, "input channels", True)),
        ("deep", "1/2", ChosenLayer("deep", 16, 0, 8, "channels", True)),
        ("last", "1/8", ChosenLayer("last", 16, 0, 2, "input channels", True)),
    ],
)
def test_channels(layer: str, share: str, expected: ChosenLayer) -> None:
    analysis = summarize(findings(selection(**{layer: share})), "Net")
    assert analysis.chosen == (expected,)


def test_layers_of_weight_or_bias_alone() -> None:
    layers = [
        Layer("scale", "", "other", "scale", ""),
        Layer("shift", "", "linear", "", "shift.bias"),
        Layer("number", "", "other", "number", ""),
        LAYERS[-1],
    ]
    shapes = SHAPES | {"scale": (6,), "shift.bias": (5,), "number": ()}
    space = update_space(layers, shapes)
    contributions = tuple(Contribution(o.name, 0.0, 0.0, 2, False) for o in space.options)
    whole = (1, 1, 1)
    found = replace(findings(CHOSEN), space=space, shapes=shapes)
    found = replace(
        found,
        chosen=replace(found.chosen, selection=whole),
        sensitivity=replace(found.sensitivity, contributions=contributions),
    )
    assert summarize(found, "Net").chosen == (
        ChosenLayer("scale", 6, 0, 6, "channels", False),
        ChosenLayer("shift", 5, 0, 0, "channels", True),
        ChosenLayer("number", 1, 0, 1, "channels", False),
    )


def test_fronts_are_thinned_and_hold_the_chosen_plan() -> None:
    analysis = summarize(findings(CHOSEN), "Net")
    for front in (analysis.front_memory, analysis.front_time):
        assert len(front) == 40
        costs = [point.memory_bytes for point in front]
        assert costs == sorted(costs)
        assert {300, 399} <= set(costs)
        (chosen,) = (point for point in front if point.is_chosen)
        assert (chosen.name, chosen.memory_bytes, chosen.step_ratio) == ("found 1", 400, 0.4)
        assert chosen.gain == pytest.approx(0.03)
        assert {point.name for point in front if not point.is_chosen} == {"1 layer"}


def test_a_chosen_plan_of_the_front_stands_there_once() -> None:
    analysis = summarize(findings(selection(stem="bias"), num_points=3), "Net")
    assert [point.is_chosen for point in analysis.front_memory] == [True]


def test_memory_keeps_its_peak() -> None:
    memory = summarize(findings(CHOSEN), "Net").memory
    assert len(memory) == 334
    assert max(step.live_bytes for step in memory) == 5000
    assert next(step for step in memory if step.live_bytes == 5000).label == "layer 777"


def test_the_plans_have_one_interval() -> None:
    rows = summarize(findings(CHOSEN), "Net").plans
    assert [row.name for row in rows] == ["found 1", "head", "full"]
    assert [row.is_chosen for row in rows] == [True, False, False]
    assert [row.state_bytes for row in rows] == [160, 40, 400]
    assert rows[0].metric_mean == pytest.approx(0.92)
    # Three pairs that differ by 0.02, so a deviation of 0.0141; t is 3.182 for 3 of freedom.
    assert {round(row.metric_half_width, 4) for row in rows} == {0.0318}


def test_the_page_can_be_drawn() -> None:
    page = render_analysis(summarize(findings(CHOSEN), "Net"))
    assert "trains 3 of 3 layers beside the head" in page
    assert "found 1 (chosen)" in page


def test_the_text() -> None:
    assert render_text(findings(CHOSEN)).splitlines() == [
        "budget     0.01 MB and 0.5 of a full step's time",
        "plan       3 of 3 layers beside the head",
        (
            "accuracy   50.0 % before training, 81.0 % head alone, 92.0 ± 3.2 % this plan, "
            "93.0 ± 3.2 % full"
        ),
        "memory     412 B a step as exported, 400 B were predicted",
        "step time  40 % of full's, as predicted",
        "examples   80 to train, 20 held out; 2 runs of each plan",
        "took       1 min 5 s",
        "",
        "trained: 3 of 3 layers beside the head",
        "  layer  share  trained                         gain alone",
        "  stem   1/4    input channels 0:2 of 8, bias  +0.010 nats",
        "  deep   1/2    channels 0:8 of 16, bias       +0.010 nats",
        "  last   bias   bias                           +0.010 nats",
        "",
        "fine-tuned, with the costs predicted:",
        "  plan                  accuracy  memory  step time  state",
        "  found 1 (chosen)  92.0 ± 3.2 %   400 B       40 %  160 B",
        "  head              81.0 ± 3.2 %   100 B       10 %   40 B",
        "  full              93.0 ± 3.2 %  1.0 kB      100 %  400 B",
    ]


def test_the_text_where_nothing_helps() -> None:
    found = replace(findings(SPACE.frozen), plan=UpdatePlan({"head.weight": None}))
    text = render_text(found)
    assert "\nplan       the head alone\n" in text
    assert "\n\ntrained beside the head: nothing\n\n" in text
