"""What an analysis found, as the page tells it: plain numbers, no tensors."""

from dataclasses import dataclass
from typing import Literal, final

Metric = Literal["accuracy", "loss"]
"""Metric values are higher for the better: an accuracy in 0..1, or minus a loss in nats."""

Phase = Literal["forward", "backward", "update"]


@final
@dataclass(frozen=True)
class Bar:
    """What training one option of a layer gains over training the head alone.

    `share_name` is "bias", "1/8", "1/4", "1/2" or "whole"; `half_width` that of the 95 %
    interval, infinite where there was one run only. What the first look skipped is screened:
    its gain counts as 0.
    """

    layer: str
    share_name: str
    gain: float
    half_width: float
    is_chosen: bool
    is_screened: bool
    num_repeats: int


@final
@dataclass(frozen=True)
class Point:
    """A plan of a Pareto front, with the gain that the contributions predict.

    `memory_bytes` is what a training step needs beside frozen weights, `step_ratio` its time
    relative to training everything.
    """

    name: str
    gain: float
    memory_bytes: int
    step_ratio: float
    is_chosen: bool


@final
@dataclass(frozen=True)
class PlanRow:
    """A plan that was really fine-tuned, with what it reached (mean and 95 % interval).

    The page compares the chosen plan with the rows named "full" and "head".
    """

    name: str
    metric_mean: float
    metric_half_width: float
    num_repeats: int
    memory_bytes: int
    step_ratio: float
    state_bytes: int
    is_chosen: bool


@final
@dataclass(frozen=True)
class MemoryStep:
    """An operator of a training step, with the bytes that live while it runs.

    Of a long step it may be the largest of a few neighbours.
    """

    label: str
    live_bytes: int
    phase: Phase


@final
@dataclass(frozen=True)
class ChosenLayer:
    """A layer that the chosen plan trains: the channels `start` to `stop` (excluded).

    `start` equals `stop` where the bias alone is trained. `dim_name` is what the channels
    are, for example "input channels".
    """

    layer: str
    num_channels: int
    start: int
    stop: int
    dim_name: str
    trains_bias: bool


@final
@dataclass(frozen=True)
class Analysis:
    """A sensitivity analysis and plan search.

    `start_metric` is that of the model before training, `head_metric` that of training the
    head alone. `seconds` is the time that all of it took. `bars`, `memory` and `chosen` stand
    in execution order; `memory` is that of the chosen plan.
    """

    model: str
    metric: Metric
    start_metric: float
    head_metric: float
    budget_text: str
    num_train: int
    num_eval: int
    num_repeats: int
    seconds: float
    bars: tuple[Bar, ...]
    front_memory: tuple[Point, ...]
    front_time: tuple[Point, ...]
    plans: tuple[PlanRow, ...]
    memory: tuple[MemoryStep, ...]
    chosen: tuple[ChosenLayer, ...]
