"""A made-up analysis of a model of many layers, to draw charts of."""

import random

from pockmobile.chart import Analysis, Bar, ChosenLayer, MemoryStep, PlanRow, Point
from pockmobile.chart.analysis import Metric, Phase

SHARES = ("bias", "1/8", "1/4", "1/2", "whole")


def example(num_layers: int = 34, metric: Metric = "accuracy", scale: float = 1.0) -> Analysis:
    """Returns an analysis whose gains are up to about 0.04 times `scale`."""
    rng = random.Random(0)
    start, head, full = (0.2, 0.781, 0.842) if metric == "accuracy" else (-4.1, -3.9, -3.7)
    names = [f"features.{i // 2}.conv.{i % 2}" for i in range(num_layers)]
    bars = tuple(bar for i, name in enumerate(names) for bar in _bars(name, i, rng, scale))
    return Analysis(
        model="MobileNetV2-0.35",
        metric=metric,
        start_metric=start,
        head_metric=head,
        budget_text="24 MB, 0.4 of full's step time",
        num_train=1768,
        num_eval=759,
        num_repeats=5,
        seconds=812.4,
        bars=bars,
        front_memory=_front(scale),
        front_time=_front(scale),
        plans=(
            PlanRow("found", full - 0.003, 0.006, 5, 7_412_000, 0.372, 412_332, True),
            PlanRow("runner-up 1", full - 0.007, 0.008, 5, 7_980_120, 0.391, 455_100, False),
            PlanRow("head", head, 0.003, 5, 1_204_224, 0.18, 30_744, False),
            PlanRow("full", full, 0.005, 5, 41_560_064, 1.0, 1_612_904, False),
            PlanRow("sparse:7:7", full - 0.018, 0.007, 3, 9_101_000, 0.42, 610_000, False),
        ),
        memory=_memory(),
        chosen=tuple(_chosen(name, i) for i, name in enumerate(names) if i % 4 == 3),
    )


def _bars(layer: str, index: int, rng: random.Random, scale: float) -> list[Bar]:
    if index % 7 == 2:
        return [Bar(layer, share, 0.0, 0.0, False, True, 0) for share in SHARES]
    shares = SHARES if index % 5 else ("bias", "whole")
    return [
        Bar(
            layer,
            share,
            scale * (rng.gauss(0.004, 0.004) + 0.004 * number * (index % 4 == 3)),
            scale * rng.uniform(0.002, 0.006),
            index % 4 == 3 and number == 2,
            False,
            3,
        )
        for number, share in enumerate(shares)
    ]


def _front(scale: float) -> tuple[Point, ...]:
    return tuple(
        Point(
            "found" if i == 6 else f"plan {i}",
            scale * 0.12 * (1 - 0.8**i),
            1_204_224 + i * 1_034_629,
            0.18 + 0.032 * i,
            i == 6,
        )
        for i in range(18)
    )


def _memory() -> tuple[MemoryStep, ...]:
    steps = [("aten.convolution", 900_000 + i * 110_000, "forward") for i in range(60)]
    for i in range(50):
        live = 7_412_000 - abs(i - 8) * 120_000
        steps.append(("aten.convolution_backward", live, "backward"))
        if i % 5 == 4:
            steps.append(("aten.addcmul", live - 200_000, "update"))
    return tuple(MemoryStep(label, live, _phase(phase)) for label, live, phase in steps)


def _phase(name: str) -> Phase:
    phases: dict[str, Phase] = {p: p for p in ("forward", "backward", "update")}
    return phases[name]


def _chosen(layer: str, index: int) -> ChosenLayer:
    if index % 8 == 3:
        return ChosenLayer(layer, 384, 96, 192, "input channels", True)
    if index % 3 == 0:
        return ChosenLayer(layer, 64, 0, 64, "channels", False)
    return ChosenLayer(layer, 384, 0, 0, "input channels", True)
