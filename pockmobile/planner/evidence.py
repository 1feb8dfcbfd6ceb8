"""Measures the best few plans of a search, beside those that people would choose by hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pockmobile.cost import Estimate
from pockmobile.errors import PlanError
from pockmobile.plan import Layer, resolve_plan
from pockmobile.planner.findings import Evidence
from pockmobile.planner.settings import Settings
from pockmobile.search import Budget, Candidate, Cost
from pockmobile.sensitivity import Task, measure_plans
from pockmobile.space import Selection, UpdateSpace, selection_of

FULL: Final = "full"
HEAD: Final = "head"
Costs = Callable[[Selection], tuple[Cost, Estimate]]


def measure_best(
    task: Task,
    space: UpdateSpace,
    found: Sequence[Candidate],
    by_hand: Mapping[str, Selection],
    costs: Costs,
    settings: Settings,
) -> tuple[Evidence, ...]:
    """Fine-tunes the plans found, those by hand, the base alone and everything."""
    plans = {f"found {place}": one.selection for place, one in enumerate(found, start=1)}
    plans |= by_hand
    # One plan may have several names: these two first, then the first one counts.
    known = {space.frozen: HEAD} if space.base else {}
    known[whole(space)] = FULL
    names = {selection: name for name, selection in reversed(plans.items())} | known
    order = [*plans, HEAD, FULL]
    outcomes = measure_plans(
        task,
        {name: space.plan(selection).update for selection, name in names.items()},
        settings.schedule,
        num_repeats=settings.num_repeats,
        store=settings.store,
        num_processes=settings.num_processes,
        progress=settings.shows_progress,
    )
    return tuple(
        Evidence(name, selection, *costs(selection), outcomes[name])
        for selection, name in sorted(names.items(), key=lambda pair: order.index(pair[1]))
    )


def whole(space: UpdateSpace) -> Selection:
    """Returns the selection that trains everything."""
    return tuple(len(layer.options) for layer in space.layers)


def plans_by_hand(
    space: UpdateSpace, layers: Sequence[Layer], costs: Costs, budget: Budget
) -> dict[str, Selection]:
    """Returns the presets that fit a budget, of each kind the one that trains most."""
    num_blocks = len({layer.block for layer in layers if layer.block})
    kinds = [
        ["bias"],
        [f"last:{number}" for number in range(num_blocks, 0, -1)],
        [f"sparse:{number}:{number}" for number in range(num_blocks, 0, -1)],
    ]
    chosen: dict[str, Selection] = {}
    for presets in kinds:
        for preset in presets:
            selection = _selection(space, layers, preset)
            if selection is not None and costs(selection)[0].fits(budget):
                chosen[preset] = selection
                break
    return chosen


def _selection(space: UpdateSpace, layers: Sequence[Layer], preset: str) -> Selection | None:
    """Returns what a preset trains, or None if the model has no such plan."""
    try:
        selection = selection_of(space, resolve_plan(preset, layers))
    except PlanError:
        return None
    return selection if any(selection) else None
