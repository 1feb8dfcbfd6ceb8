"""The page on an analysis: the answer, the evidence, the pictures, the numbers behind them."""

import math
from collections.abc import Sequence

from pockmobile.artifact.report import human_bytes
from pockmobile.chart import area, bars, channels, scatter
from pockmobile.chart.analysis import Analysis, Bar, MemoryStep, Metric, PlanRow
from pockmobile.chart.markup import Markup, element, join, table
from pockmobile.chart.style import style_sheet
from pockmobile.chart.units import (
    GAINS_IN,
    compared_text,
    count_text,
    duration_text,
    gain_text,
    half_width_text,
    metric_text,
    percent_text,
    unbroken,
)


def render_analysis(analysis: Analysis) -> str:
    """Returns the report as one HTML page, which needs nothing beside it.

    The same analysis always gives the same page.
    """
    title = f"What to train in {analysis.model}"
    head = element(
        "head",
        Markup('<meta charset="utf-8"/>'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1"/>'),
        element("title", title),
        element("style", Markup(style_sheet())),
    )
    sections = [
        element("h1", title),
        element("p", answer(analysis), class_="answer"),
        _facts(analysis),
        _evidence(analysis),
        _contributions(analysis),
        _channels(analysis),
        _memory(analysis),
        _fronts(analysis),
        _numbers(analysis),
    ]
    body = element("body", element("main", join(sections, "\n")))
    return "<!DOCTYPE html>\n" + element("html", head, "\n", body, lang="en") + "\n"


def answer(analysis: Analysis) -> str:
    """Returns what was found, in one sentence."""
    plan = next((row for row in analysis.plans if row.is_chosen), None)
    if plan is None:
        return "No plan was chosen."
    metric = analysis.metric
    reached = metric_text(metric, plan.metric_mean, plan.metric_half_width)
    return (
        f"The plan found trains {_num_layers(analysis)} beside the head, needs "
        f"{_memory_text(plan, analysis.plans)} a step beside frozen weights and "
        f"{unbroken(percent_text(plan.step_ratio))} of full fine-tuning's step time, and "
        f"reaches {'an accuracy' if metric == 'accuracy' else 'a loss'} of {unbroken(reached)}"
        f"{_comparison(plan, analysis)}."
    )


def _num_layers(analysis: Analysis) -> str:
    layers = {bar.layer for bar in analysis.bars}
    chosen = {bar.layer for bar in analysis.bars if bar.is_chosen}
    if not layers:
        return count_text(len(analysis.chosen), "layer")
    return f"{len(chosen):,} of {count_text(len(layers), 'layer')}"


def _memory_text(plan: PlanRow, plans: Sequence[PlanRow]) -> str:
    full = next((row for row in plans if row.name == "full" and row is not plan), None)
    size = unbroken(human_bytes(plan.memory_bytes))
    if full is None or not full.memory_bytes:
        return size
    return f"{size} ({unbroken(percent_text(plan.memory_bytes / full.memory_bytes))} of full's)"


def _comparison(plan: PlanRow, analysis: Analysis) -> str:
    names = {"full": "full fine-tuning", "head": "the head alone"}
    rows = {row.name: row for row in analysis.plans if row is not plan}
    words = [
        _difference(plan, rows[name], words, analysis.metric)
        for name, words in names.items()
        if name in rows and math.isfinite(rows[name].metric_mean + plan.metric_mean)
    ]
    return ": " + " and ".join(words) if words else ""


def _difference(plan: PlanRow, other: PlanRow, words: str, metric: Metric) -> str:
    difference = plan.metric_mean - other.metric_mean
    noise = math.hypot(plan.metric_half_width, other.metric_half_width)
    is_noise = math.isfinite(noise) and 0 < abs(difference) <= noise
    remark = " (a difference within the intervals)" if is_noise else ""
    return f"{compared_text(metric, difference)} {words}{remark}"


def _facts(analysis: Analysis) -> Markup:
    metric = analysis.metric
    facts = [
        ("Budget", analysis.budget_text),
        (f"{metric.capitalize()} before training", metric_text(metric, analysis.start_metric)),
        (
            f"{metric.capitalize()} of the head alone",
            metric_text(metric, analysis.head_metric),
        ),
        ("Examples", f"{analysis.num_train:,} to train, {analysis.num_eval:,} held out"),
        ("Repeats", f"{analysis.num_repeats:,}"),
        ("Time taken", duration_text(analysis.seconds)),
    ]
    parts = [element("div", element("dt", name), element("dd", fact)) for name, fact in facts]
    return element("dl", *parts)


def _section(title: str, explanation: str, *parts: Markup) -> Markup:
    content = parts or (element("p", "There is nothing to show.", class_="muted"),)
    return element("section", element("h2", title), element("p", explanation), *content)


def _evidence(analysis: Analysis) -> Markup:
    metric = analysis.metric
    better = "higher" if metric == "accuracy" else "lower"
    header = ("plan", metric, "runs", "memory of a step", "step time, of full's", "state")
    rows = [
        (
            _marked(row.name, row.is_chosen),
            metric_text(metric, row.metric_mean, row.metric_half_width),
            f"{row.num_repeats:,}",
            human_bytes(row.memory_bytes),
            percent_text(row.step_ratio),
            human_bytes(row.state_bytes),
        )
        for row in analysis.plans
    ]
    marked = [row.is_chosen for row in analysis.plans]
    caption = f"Held-out {metric}, {better} is better"
    return _section(
        "The evidence",
        "These plans were really fine-tuned. What follows ± is half of the 95 % interval of "
        "the mean over runs. Memory is what a step needs beside frozen weights; state is what "
        "is kept between steps.",
        *([table(caption, header, rows, marked, "<>>>>>")] if rows else []),
    )


def _contributions(analysis: Analysis) -> Markup:
    charts = bars.bar_charts(analysis.bars, GAINS_IN)
    return _section(
        "What each layer contributes",
        "What training one layer together with the head takes off the held-out loss, over "
        "training the head alone, in execution order. The lines are 95 % intervals: where one "
        "crosses 0, the gain may be noise. Without an end mark it runs beyond the chart.",
        *([bars.legend(), element("div", *charts, class_="charts")] if charts else []),
    )


def _channels(analysis: Analysis) -> Markup:
    charts = channels.channel_charts(analysis.chosen)
    return _section(
        "The chosen channels",
        "Each strip is all channels of a layer's weight, of which the filled part is trained; "
        "the square at its end is the bias, filled if it is trained.",
        *([element("div", *charts, class_="charts")] if charts else []),
    )


def _memory(analysis: Analysis) -> Markup:
    steps = analysis.memory
    parts = []
    if steps:
        pictures = element("div", area.area_chart(steps), _phases(steps), class_="charts")
        parts = [area.legend(), pictures]
    return _section(
        "Memory over a step",
        "The bytes that live while the operators of a step of the chosen plan run. A moment is "
        "an operator, or in long steps the largest of a few. The peak is the memory that the "
        "step needs.",
        *parts,
    )


def _phases(steps: Sequence[MemoryStep]) -> Markup:
    rows, marked = [], []
    peak = steps[area.peak_of(steps)]
    for phase in area.PHASES:
        found = [step for step in steps if step.phase == phase]
        if found:
            most = found[area.peak_of(found)]
            size = human_bytes(most.live_bytes)
            rows.append((phase, f"{len(found):,}", size, most.label))
            marked.append(phase == peak.phase)
    return table("Peaks", ("phase", "moments", "peak", "at"), rows, marked, "<>><")


def _fronts(analysis: Analysis) -> Markup:
    charts = []
    if analysis.front_memory:
        charts.append(scatter.memory_front(analysis.front_memory, GAINS_IN))
    if analysis.front_time:
        charts.append(scatter.time_front(analysis.front_time, GAINS_IN))
    return _section(
        "Gain against cost",
        "The best plans for each cost; the line is the largest gain that a cost allows, and "
        "the diamond the chosen plan. Gains are predicted as the sum of the layers' "
        "contributions, which overlap: the evidence above tells what is really gained.",
        *([element("div", *charts, class_="charts")] if charts else []),
    )


def _numbers(analysis: Analysis) -> Markup:
    header = ("layer", "share", "gain", "95 % interval", "runs", "chosen")
    rows = [_number_row(bar) for bar in analysis.bars]
    marked = [bar.is_chosen for bar in analysis.bars]
    caption = "Gain over the head alone"
    return _section(
        "All contributions",
        "Screened is what the first look took for hopeless: it was not measured, and counts "
        "as no gain.",
        *([table(caption, header, rows, marked, "<<>>><")] if rows else []),
    )


def _number_row(bar: Bar) -> tuple[str, ...]:
    chosen = "chosen" if bar.is_chosen else ""
    if bar.is_screened:
        return (bar.layer, bar.share_name, "", "", "screened", chosen)
    return (
        bar.layer,
        bar.share_name,
        gain_text(GAINS_IN, bar.gain),
        half_width_text(GAINS_IN, bar.half_width),
        f"{bar.num_repeats:,}",
        chosen,
    )


def _marked(name: str, is_chosen: bool) -> str:
    return f"{name} (chosen)" if is_chosen else name
