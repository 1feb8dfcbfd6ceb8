"""Measures plans by really fine-tuning them."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from pockmobile.errors import UsageError
from pockmobile.plan import Slice, UpdatePlan, check_plan
from pockmobile.sensitivity.schedule import Schedule
from pockmobile.sensitivity.store import Unit, open_store
from pockmobile.sensitivity.task import Task
from pockmobile.sensitivity.training import Outcome
from pockmobile.sensitivity.workers import run_units


def measure_plans(
    task: Task,
    plans: Mapping[str, Mapping[str, Slice | None]],
    schedule: Schedule,
    *,
    num_repeats: int = 2,
    store: Path | None = None,
    num_processes: int = 2,
    progress: bool = True,
) -> Mapping[str, tuple[Outcome, ...]]:
    """Returns what each plan gives, with the seeds 0 to `num_repeats` - 1.

    Under one seed all plans see the same batches, so that outcomes can be compared in pairs.

    Args:
        task: the model and its data.
        plans: what is trained, by a name for the plan; nothing at all measures the start.
        schedule: how each is trained.
        num_repeats: seeds.
        store: a file to which each outcome is written as it comes. What it holds already is
            not measured again; it serves any plans of the same task and schedule.
        num_processes: processes that work, each on one thread; 1 works in this one. A script
            that takes more needs `if __name__ == "__main__":`.
        progress: whether a bar on stderr (where that is a terminal) shows what is left.

    Raises:
        PlanError: a plan does not fit the model.
        UsageError: a number below 1, or a store of another analysis.
    """
    for name, number in (("num_repeats", num_repeats), ("num_processes", num_processes)):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, found {number}")
    shapes = {name: task.forward.parameters[name].shape for name in task.forward.trainable}
    for update in filter(None, plans.values()):
        check_plan(UpdatePlan(update), shapes)
    units = {
        name: [Unit(name, update, seed) for seed in range(num_repeats)]
        for name, update in plans.items()
    }
    with open_store(store, task, schedule) as done:
        wanted = {unit.key: unit for group in units.values() for unit in group}
        missing = [unit for unit in wanted.values() if unit not in done]
        with (
            tqdm(
                total=len(wanted),
                initial=len(wanted) - len(missing),
                unit="run",
                leave=False,
                disable=None if progress else True,
            ) as bar,
            closing(run_units(task, missing, schedule, num_processes)) as outcomes,
        ):
            for unit, outcome in outcomes:
                done.add(unit, outcome)
                bar.update()
        return {name: tuple(done[unit] for unit in group) for name, group in units.items()}
