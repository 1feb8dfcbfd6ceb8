"""How much each option of an update space gains over training the base alone."""

import time
from collections.abc import Iterable, Mapping
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
    """What training an option beside the base gains in the metric, +- `half_width` (95 %).

    One that `is_screened` was not measured, since it promised too little: its gain is 0.
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

    Options of which a first look at the gradients promises nothing are skipped. Shares of a
    weight's channels are measured only where the whole weight gains more than its interval.
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

    outcomes = dict(measure(option for option in hopeful if not _is_share(option)))
    helping = _helping_layers(space, _contributions(space, outcomes))
    shares = [option for option in hopeful if _is_share(option) and option.layer in helping]
    if shares:
        outcomes |= {**measure(shares), _BASE: outcomes[_BASE]}
    return Sensitivity(
        metric=metric_name(task.loss),
        start=fine_tune(task, {}, schedule, 0).metric,
        head=fmean(outcome.metric for outcome in outcomes[_BASE]),
        contributions=_contributions(space, outcomes),
        seconds=time.monotonic() - started,
    )


def _is_share(option: Option) -> bool:
    return 0.0 < option.share < 1.0


def _plans(
    space: UpdateSpace, options: Iterable[Option]
) -> Mapping[str, Mapping[str, Slice | None]]:
    plans = {option.name: {**space.base, **option.update} for option in options}
    return {_BASE: space.base, **plans}


def _helping_layers(
    space: UpdateSpace, contributions: tuple[Contribution, ...]
) -> frozenset[str]:
    """Returns the layers whose whole weight gains more than chance."""
    pairs = zip(space.options, contributions, strict=True)
    return frozenset(
        option.layer
        for option, found in pairs
        if option.share == 1.0 and found.gain - found.half_width > 0.0
    )


def _contributions(
    space: UpdateSpace, outcomes: Mapping[str, tuple[Outcome, ...]]
) -> tuple[Contribution, ...]:
    base = outcomes[_BASE]
    differences = {
        option.name: [
            with_option.metric - alone.metric
            for with_option, alone in zip(outcomes[option.name], base, strict=True)
        ]
        for option in space.options
        if option.name in outcomes
    }
    half_width = pooled_half_width(list(differences.values()))
    return tuple(
        Contribution(option.name, fmean(differences[option.name]), half_width, len(base), False)
        if option.name in differences
        else Contribution(option.name, 0.0, 0.0, 0, True)
        for option in space.options
    )
