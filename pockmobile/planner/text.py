"""Findings as lines of text, for a terminal."""

from collections.abc import Sequence

from pockmobile.artifact.report import human_bytes, table
from pockmobile.chart import ChosenLayer, PlanRow
from pockmobile.chart.units import (
    GAINS_IN,
    count_text,
    duration_text,
    gain_text,
    metric_text,
    percent_text,
)
from pockmobile.planner.findings import Findings
from pockmobile.planner.summary import (
    chosen_layers,
    chosen_options,
    metric_of,
    plan_rows,
)


def render_text(findings: Findings) -> str:
    """Returns what was found and why, in sections like those of a program's report."""
    sections = (_summary(findings), _trained(findings), _evidence(findings))
    return "\n\n".join("\n".join(lines) for lines in sections)


def _summary(findings: Findings) -> list[str]:
    chosen, metric = findings.chosen, metric_of(findings)
    shown, predicted = human_bytes(findings.shown_bytes), human_bytes(chosen.cost.memory_bytes)
    counts = f"{findings.num_train:,} to train, {findings.num_eval:,} held out"
    rows = [
        ("budget", str(findings.budget)),
        ("plan", _plan(findings)),
        (metric, _reached(findings)),
        ("memory", f"{shown} a step as exported, {predicted} were predicted"),
        ("step time", f"{percent_text(chosen.cost.step_ratio)} of full's, as predicted"),
        ("examples", f"{counts}; {count_text(len(chosen.outcomes), 'run')} of each plan"),
        ("took", duration_text(findings.seconds)),
    ]
    return table(rows, "<<")


def _plan(findings: Findings) -> str:
    options = chosen_options(findings)
    of_layers = f"{len(options)} of {count_text(len(findings.space.layers), 'layer')}"
    if not findings.space.base:
        return of_layers
    return f"{of_layers} beside the head" if options else "the head alone"


def _reached(findings: Findings) -> str:
    metric, rows = metric_of(findings), plan_rows(findings)
    parts = [
        f"{metric_text(metric, findings.sensitivity.start)} before training",
        f"{metric_text(metric, findings.sensitivity.head)} head alone",
        *(f"{_metric(findings, row)} this plan" for row in rows if row.is_chosen),
        *(f"{_metric(findings, row)} full" for row in rows if row.name == "full"),
    ]
    return ", ".join(parts)


def _metric(findings: Findings, row: PlanRow) -> str:
    return metric_text(metric_of(findings), row.metric_mean, row.metric_half_width)


def _trained(findings: Findings) -> list[str]:
    layers = chosen_layers(findings)
    found = {one.option: one for one in findings.sensitivity.contributions}
    rows = [
        (
            layer.layer,
            option.share_name,
            _channels(layer),
            gain_text(GAINS_IN, found[option.name].gain),
        )
        for layer, option in zip(layers, chosen_options(findings), strict=True)
    ]
    if not rows:
        return ["trained beside the head: nothing"]
    header = ("layer", "share", "trained", "gain alone")
    return [f"trained: {_plan(findings)}", *_indented(table([header, *rows], "<<<>"))]


def _channels(layer: ChosenLayer) -> str:
    bias = "bias" if layer.trains_bias else ""
    if layer.start == layer.stop:
        return bias
    window = f"{layer.dim_name} {layer.start}:{layer.stop} of {layer.num_channels}"
    return f"{window}, {bias}" if bias else window


def _evidence(findings: Findings) -> list[str]:
    header = ("plan", metric_of(findings), "memory", "step time", "state")
    rows = [
        (
            f"{row.name} (chosen)" if row.is_chosen else row.name,
            _metric(findings, row),
            human_bytes(row.memory_bytes),
            percent_text(row.step_ratio),
            human_bytes(row.state_bytes),
        )
        for row in plan_rows(findings)
    ]
    return [
        "fine-tuned, with the costs predicted:",
        *_indented(table([header, *rows], "<>>>>")),
    ]


def _indented(lines: Sequence[str]) -> list[str]:
    return ["  " + line for line in lines]
