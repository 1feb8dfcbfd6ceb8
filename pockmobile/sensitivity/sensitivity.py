"""How much each option of an update space gains over training the base alone."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final, final

from pockmobile.errors import UsageError
from pockmobile.plan import Slice
from pockmobile.sensitivity.first_look import FirstLook, first_look
from pockmobile.sensitivity.intervals import pooled_half_width
from pockmobile.sensitivity.plans import measure_plans
from pockmobile.sensitivity.schedule import Schedule
from pockmobile.sensitivity.task import Task
from pockmobile.sensitivity.training import Outcome, fine_tune, metric_name
from pockmobile.space import Option, UpdateSpace

_BASE: Final = "base"


@final
@dataclass(frozen=True)
class Contribution:
    """What training an option beside the base takes off the held-out loss, +- `half_width`.

    In nats, whatever the metric: an accuracy counts examples on one side of a border, so that
    the few of a held-out part tell most gains of one layer not from noise (of 65 options of a
    MobileNetV1 on 404 images 18 by accuracy, 57 by loss). The interval is one of 95 %. An
    option that `is_screened` was not measured, since it promised too little: its gain is 0.
    """

    option: str
    gain: float
    half_width: float
    num_repeats: int
    is_screened: bool


@final
@dataclass(frozen=True)
class Sensitivity:
    """The contributions of all options of a space, in its order.

    `metric` is "accuracy" (0 to 1) or "loss" (minus the mean loss): higher is better. `start`
    is its value before training, `head` that of training the base alone; `seconds` the wall
    time of this analysis, without what was resumed.
    """

    metric: str
    start: float
    head: float
    contributions: tuple[Contribution, ...]
    seconds: float


def measure_sensitivity(
    task: Task,
    space: UpdateSpace,
    schedule: Schedule,
    *,
    look: FirstLook | None = None,
    skipped: frozenset[str] = frozenset(),
    num_repeats: int = 2,
    store: Path | None = None,
    num_processes: int = 2,
    progress: bool = True,
) -> Sensitivity:
    """Fine-tunes the base alone and beside each option, and returns what options gain.

    Options of which a first look at the gradients promises nothing are skipped. Smaller shares
    of a weight's channels are measured only where the largest one (mostly the whole weight)
    gains more than chance in the metric.
    Base and option are compared under the same seeds; the interval is the same for all.

    Args:
        task: the model and its data.
        space: the options.
        schedule: how each is trained.
        look: the first look, if it was taken already.
        skipped: names of options that are not to be measured, say because none of their
            plans fits a budget; they count as screened.
        num_repeats: seeds, at least 2.
        store: as in `measure_plans`.
        num_processes: as in `measure_plans`.
        progress: as in `measure_plans`.

    Raises:
        UsageError: fewer than 2 repeats, or a store of another analysis.
    """
    if num_repeats < 2:
        raise UsageError(f"an interval needs at least 2 repeats, found {num_repeats}")
    started = time.monotonic()
    screened = (look or first_look(task, space)).screened(space) | skipped
    hopeful = [option for option in space.options if option.name not in screened]

    def measure(options: Iterable[Option]) -> Mapping[str, tuple[Outcome, ...]]:
        return measure_plans(
            task,
            _plans(space, options),
            schedule,
            num_repeats=num_repeats,
            store=store,
            num_processes=num_processes,
            progress=progress,
        )

    start = fine_tune(task, {}, schedule, 0)
    # Options stand by rising share, so a layer's last one is its largest.
    largest = {option.layer: option for option in hopeful if option.share}
    smaller = [o for o in hopeful if o.share and o is not largest[o.layer]]
    outcomes = dict(measure(option for option in hopeful if option not in smaller))
    helping = _helping(largest.values(), outcomes)
    shares = [option for option in smaller if option.layer in helping]
    if shares:
        outcomes |= {**measure(shares), _BASE: outcomes[_BASE]}
    return Sensitivity(
        metric=metric_name(task.loss),
        start=start.metric,
        head=fmean(outcome.metric for outcome in outcomes[_BASE]),
        contributions=_contributions(space, outcomes, start),
        seconds=time.monotonic() - started,
    )


def _plans(
    space: UpdateSpace, options: Iterable[Option]
) -> Mapping[str, Mapping[str, Slice | None]]:
    plans = {option.name: {**space.base, **option.update} for option in options}
    return {_BASE: space.base, **plans}


def _helping(
    options: Iterable[Option], outcomes: Mapping[str, tuple[Outcome, ...]]
) -> frozenset[str]:
    """Returns the layers of the options that gain more in the metric than chance."""
    gains = _differences(outcomes, lambda outcome: outcome.metric)
    half_width = pooled_half_width(list(gains.values()))
    return frozenset(
        option.layer for option in options if fmean(gains[option.name]) > half_width
    )


def _contributions(
    space: UpdateSpace, outcomes: Mapping[str, tuple[Outcome, ...]], start: Outcome
) -> tuple[Contribution, ...]:
    gains = _differences(outcomes, lambda outcome: -_loss(outcome, start))
    half_width = pooled_half_width(list(gains.values()))
    num_repeats = len(outcomes[_BASE])
    return tuple(
        Contribution(option.name, fmean(gains[option.name]), half_width, num_repeats, False)
        if option.name in gains
        else Contribution(option.name, 0.0, 0.0, 0, True)
        for option in space.options
    )


def _differences(
    outcomes: Mapping[str, tuple[Outcome, ...]], value: Callable[[Outcome], float]
) -> dict[str, list[float]]:
    """Returns by how much each plan surpasses the base, seed by seed."""
    base = outcomes[_BASE]
    return {
        name: [value(one) - value(alone) for one, alone in zip(found, base, strict=True)]
        for name, found in outcomes.items()
        if name != _BASE
    }


def _loss(outcome: Outcome, start: Outcome) -> float:
    """Returns the loss; a run that diverged is rolled back to the start."""
    return outcome.loss if math.isfinite(outcome.loss) else start.loss
