"""Findings as the report tells them: plain numbers, no tensors."""

from collections.abc import Sequence
from typing import Final, cast

from pockmobile.chart import Analysis, Bar, ChosenLayer, MemoryStep, PlanRow, Point
from pockmobile.chart.analysis import Metric, Phase
from pockmobile.cost import Moment
from pockmobile.plan import Slice
from pockmobile.planner.analysis import significant_gains
from pockmobile.planner.findings import Findings
from pockmobile.search import Candidate
from pockmobile.sensitivity.intervals import pooled_half_width
from pockmobile.space import LayerOptions, Option, UpdateSpace

_POINTS: Final = 40
"""About as many plans of a front can be told apart in a picture."""

_MOMENTS: Final = 400
"""About as many moments of a step can be told apart in a picture."""

_DIM_NAMES: Final = ("channels", "input channels")


def summarize(findings: Findings, model_name: str) -> Analysis:
    """Returns what the HTML report tells of an analysis."""
    sensitivity = findings.sensitivity
    return Analysis(
        model=model_name,
        metric=metric_of(findings),
        start_metric=sensitivity.start,
        head_metric=sensitivity.head,
        budget_text=str(findings.budget),
        num_train=findings.num_train,
        num_eval=findings.num_eval,
        num_repeats=len(findings.chosen.outcomes),
        seconds=findings.seconds,
        bars=_bars(findings),
        front_memory=_front(findings, findings.result.front_memory),
        front_time=_front(findings, findings.result.front_time),
        plans=plan_rows(findings),
        memory=_memory(findings.chosen.estimate.moments),
        chosen=chosen_layers(findings),
    )


def metric_of(findings: Findings) -> Metric:
    """Returns what was measured on the held-out examples."""
    return cast(Metric, findings.sensitivity.metric)


def plan_rows(findings: Findings) -> tuple[PlanRow, ...]:
    """Returns the plans that were fine-tuned, all with an interval from their joint spread."""
    metrics = [[outcome.metric for outcome in one.outcomes] for one in findings.evidence]
    half_width = pooled_half_width(metrics)
    return tuple(
        PlanRow(
            name=one.name,
            metric_mean=one.metric,
            metric_half_width=half_width,
            num_repeats=len(one.outcomes),
            memory_bytes=one.cost.memory_bytes,
            step_ratio=one.cost.step_ratio,
            state_bytes=one.estimate.state_bytes,
            is_chosen=one is findings.chosen,
        )
        for one in findings.evidence
    )


def chosen_layers(findings: Findings) -> tuple[ChosenLayer, ...]:
    """Returns what the chosen plan trains beside the base, in execution order."""
    layers = {layer.layer: layer for layer in findings.space.layers}
    return tuple(
        _chosen_layer(layers[option.layer], option, findings)
        for option in chosen_options(findings)
    )


def chosen_options(findings: Findings) -> list[Option]:
    """Returns the options of the chosen plan, in execution order."""
    return findings.space.chosen(findings.chosen.selection)


def _chosen_layer(layer: LayerOptions, option: Option, findings: Findings) -> ChosenLayer:
    biases = layer.options[0].update if layer.options[0].share == 0 else {}
    weight = next((name for name in layer.options[-1].update if name not in biases), None)
    shape = findings.shapes[weight or next(iter(biases))]
    part = option.update.get(weight or "")
    dim = _sliced_dim(layer)
    num_channels = shape[dim] if shape else 1
    if option.share == 0:
        part = Slice(dim, 0, 0)
    return ChosenLayer(
        layer=layer.layer,
        num_channels=num_channels,
        start=part.start if part else 0,
        stop=part.stop if part else num_channels,
        dim_name=_DIM_NAMES[dim],
        trains_bias=any(name in biases for name in option.update),
    )


def _sliced_dim(layer: LayerOptions) -> int:
    """Returns the dimension that the layer's shares slice; a weight without any has one."""
    parts = [part for option in layer.options for part in option.update.values() if part]
    return parts[0].dim if parts else 0


def _bars(findings: Findings) -> tuple[Bar, ...]:
    chosen = {option.name for option in chosen_options(findings)}
    pairs = zip(findings.space.options, findings.sensitivity.contributions, strict=True)
    return tuple(
        Bar(
            layer=option.layer,
            share_name=option.share_name,
            gain=found.gain,
            half_width=found.half_width,
            is_chosen=option.name in chosen,
            is_screened=found.is_screened,
            num_repeats=found.num_repeats,
        )
        for option, found in pairs
    )


def _front(findings: Findings, front: Sequence[Candidate]) -> tuple[Point, ...]:
    """Returns a front and the chosen plan, which measuring may have put before its plans."""
    chosen = findings.chosen
    gains = significant_gains(findings.sensitivity)
    gain = sum(gains.get(option.name, 0.0) for option in chosen_options(findings))
    others = [one for one in front if one.selection != chosen.selection]
    points = [
        Point(
            _name(findings.space, one), one.gain, one.cost.memory_bytes, one.cost.step_ratio,
            is_chosen=False,
        )
        for one in _evenly(others, _POINTS - 1)
    ]  # fmt: skip
    cost = chosen.cost
    points.append(Point(chosen.name, gain, cost.memory_bytes, cost.step_ratio, is_chosen=True))
    return tuple(sorted(points, key=lambda point: (point.memory_bytes, point.step_ratio)))


def _name(space: UpdateSpace, candidate: Candidate) -> str:
    num_layers = len(space.chosen(candidate.selection))
    return f"{num_layers} layer" if num_layers == 1 else f"{num_layers} layers"


def _evenly(front: Sequence[Candidate], most: int) -> list[Candidate]:
    """Returns at most so many of them, evenly spread, with the first and the last."""
    if len(front) <= most:
        return list(front)
    return [front[round(place * (len(front) - 1) / (most - 1))] for place in range(most)]


def _memory(moments: Sequence[Moment]) -> tuple[MemoryStep, ...]:
    """Returns the largest of each few neighbours, so that the peak is among them."""
    size = -(-len(moments) // _MOMENTS)
    groups = [moments[start : start + size] for start in range(0, len(moments), max(size, 1))]
    largest = [max(group, key=lambda moment: moment.live_bytes) for group in groups]
    return tuple(
        MemoryStep(moment.label, moment.live_bytes, cast(Phase, moment.phase))
        for moment in largest
    )
