"""Finds what to train: sensitivity, cost and search, then the best few measured for real."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Final, final

from torch import Tensor, nn
from torch.export import ExportedProgram

from pockmobile.capture import describe_layers, export_forward
from pockmobile.compiler import compile
from pockmobile.cost import CostModel, Estimate, cost_model
from pockmobile.errors import PlanError
from pockmobile.loss import Loss, resolve_loss
from pockmobile.plan import Layer, UpdatePlan
from pockmobile.planner.evidence import Costs, measure_best, plans_by_hand, whole
from pockmobile.planner.examples import Examples, join_batches
from pockmobile.planner.findings import Evidence, Findings
from pockmobile.planner.settings import Settings
from pockmobile.search import Budget, Cost, search
from pockmobile.sensitivity import FirstLook, Sensitivity, Task, first_look, measure_sensitivity
from pockmobile.space import Selection, UpdateSpace, update_space
from pockmobile.targets import resolve_target

_MARGIN: Final = 0.08
"""The share by which a plan's memory may be predicted too low (`scripts/calibrate.py`)."""


def find_plan(
    model: nn.Module | ExportedProgram,
    train_batches: Iterable[Any],
    eval_batches: Iterable[Any],
    *,
    loss: str | Loss | Callable[..., Tensor] = "cross_entropy",
    budget: Budget,
    **settings: Any,
) -> UpdatePlan:
    """Returns the plan that gains most on held-out data under a budget.

    Args:
        model: the model at its start; it is not changed.
        train_batches: pairs (inputs, targets) as a DataLoader gives them, each a tensor or a
            tuple of tensors; inputs may be tensors by keyword. The first one's size is the
            batch of a training step.
        eval_batches: pairs of the same kind, held out.
        loss: as for `compile`.
        budget: the most that a training step may need.
        **settings: see `Settings`.

    Raises:
        PlanError: nothing fits the budget; the message names the smallest plan and its cost.
        ModelError: the model's forward pass or the loss fails.
        UsageError: there is no data, or it does not fit.
    """
    train, batch_size = join_batches("training", train_batches)
    evaluation, _ = join_batches("evaluation", eval_batches)
    return analyze(
        model, train, evaluation, batch_size, loss, budget, Settings(**settings)
    ).plan


def analyze(
    model: nn.Module | ExportedProgram,
    train: Examples,
    evaluation: Examples,
    batch_size: int,
    loss: str | Loss | Callable[..., Tensor],
    budget: Budget,
    settings: Settings,
) -> Findings:
    """Finds a plan as `find_plan` does, and returns it with the evidence."""
    started = time.monotonic()
    batch = train.first(batch_size)
    prepared = _prepare(model, train, evaluation, batch, resolve_loss(loss), settings)
    task, space, costs = prepared.task, prepared.space, prepared.costs
    if space.base:  # A budget that nothing fits is told before hours of measuring.
        search(space, {}, lambda selection: costs(selection)[0], budget)
    settings.progress("fine-tune each layer alone")
    sensitivity = _measure(prepared, budget, settings)
    settings.progress("search")
    result = search(
        space,
        significant_gains(sensitivity),
        lambda selection: costs(selection)[0],
        _with_margin(budget, costs(space.frozen)[0] if space.base else None),
        seed=settings.seed,
        num_best=settings.num_best,
    )
    settings.progress("fine-tune the best plans")
    by_hand = plans_by_hand(space, prepared.layers, costs, budget)
    evidence = measure_best(task, space, result.best, by_hand, costs, settings)
    settings.progress("export the best plan")
    export = partial(_exported_bytes, model, batch, task.loss, settings)
    chosen, shown_bytes = _verified(evidence, space, budget, export)
    return Findings(
        plan=space.plan(chosen.selection),
        chosen=chosen,
        shown_bytes=shown_bytes,
        evidence=evidence,
        space=space,
        shapes=prepared.shapes,
        sensitivity=sensitivity,
        result=result,
        budget=budget,
        num_train=task.train.num_examples,
        num_eval=task.eval.num_examples,
        seconds=time.monotonic() - started,
    )


@final
@dataclass(frozen=True)
class _Prepared:
    """The model with its task, and what its plans would cost."""

    task: Task
    layers: Sequence[Layer]
    shapes: Mapping[str, tuple[int, ...]]
    look: FirstLook
    space: UpdateSpace
    costs: Costs


def _prepare(
    model: nn.Module | ExportedProgram,
    train: Examples,
    evaluation: Examples,
    batch: Examples,
    loss: Loss,
    settings: Settings,
) -> _Prepared:
    settings.progress("export the forward pass")
    forward = export_forward(model, batch.args, batch.kwargs)
    task = Task(forward, loss, train.data(forward.inputs), evaluation.data(forward.inputs))
    layers = describe_layers(forward)
    shapes = {name: tuple(forward.parameters[name].shape) for name in forward.trainable}
    settings.progress("look at the gradients")
    look = first_look(task, update_space(layers, shapes))
    space = update_space(layers, shapes, look.energy)
    settings.progress("predict costs")
    costs = cost_model(
        forward,
        loss,
        space,
        optimizer=settings.optimizer,
        target=resolve_target(settings.target),
        clips=settings.clip_norm is not None,
        example_targets=batch.targets,
    )
    return _Prepared(task, layers, shapes, look, space, _relative(space, costs))


def _relative(space: UpdateSpace, model: CostModel) -> Costs:
    """Returns what a selection costs, relative to training everything."""
    full = model.estimate(space.plan(whole(space)).update)

    @cache
    def costs(selection: Selection) -> tuple[Cost, Estimate]:
        estimate = model.estimate(space.plan(selection).update)
        return Cost(estimate.memory_bytes, estimate.seconds / full.seconds), estimate

    return costs


def _measure(prepared: _Prepared, budget: Budget, settings: Settings) -> Sensitivity:
    return measure_sensitivity(
        prepared.task,
        prepared.space,
        settings.schedule,
        look=prepared.look,
        skipped=_too_dear(prepared.space, prepared.costs, budget),
        num_repeats=settings.num_repeats,
        store=settings.store,
        num_processes=settings.num_processes,
        progress=settings.shows_progress,
    )


def _exported_bytes(
    model: nn.Module | ExportedProgram,
    batch: Examples,
    loss: Loss,
    settings: Settings,
    plan: UpdatePlan,
) -> int:
    """Returns what a training step of the exported program needs."""
    program = compile(
        model,
        batch.args,
        batch.targets,
        example_kwargs=batch.kwargs,
        loss=loss,
        plan=plan,
        optimizer=settings.optimizer,
        clip_norm=settings.clip_norm,
        target=settings.target,
    )
    method = program.manifest.methods["train_step"]
    return method.planned_bytes + method.workspace_bytes


def _with_margin(budget: Budget, smallest: Cost | None) -> Budget:
    """Returns the budget less what predictions of memory may miss; the base always fits."""
    if budget.memory_bytes is None:
        return budget
    limit = int(budget.memory_bytes * (1.0 - _MARGIN))
    return replace(budget, memory_bytes=max(limit, smallest.memory_bytes if smallest else 0))


def _too_dear(space: UpdateSpace, costs: Costs, budget: Budget) -> frozenset[str]:
    """Returns the names of the options that exceed the budget even alone."""
    names = set()
    for place, layer in enumerate(space.layers):
        for number, option in enumerate(layer.options, start=1):
            alone = (*space.frozen[:place], number, *space.frozen[place + 1 :])
            if not costs(alone)[0].fits(budget):
                names.add(option.name)
    return frozenset(names)


def significant_gains(sensitivity: Sensitivity) -> Mapping[str, float]:
    """Returns the gains that are more than noise: those above their 95 % interval."""
    return {
        found.option: found.gain
        for found in sensitivity.contributions
        if found.gain > found.half_width
    }


def _verified(
    evidence: tuple[Evidence, ...],
    space: UpdateSpace,
    budget: Budget,
    shown: Callable[[UpdatePlan], int],
) -> tuple[Evidence, int]:
    """Returns the best plan whose exported program fits, and the bytes that it needs.

    Raises:
        PlanError: none does, though predictions said so.
    """
    fitting = [one for one in evidence if one.cost.fits(budget)]
    needed: list[int] = []
    for one in sorted(fitting, key=lambda one: (-one.metric, one.cost.memory_bytes)):
        needed.append(shown(space.plan(one.selection)))
        if budget.memory_bytes is None or needed[-1] <= budget.memory_bytes:
            return one, needed[-1]
    raise PlanError(
        f"no exported plan fits a budget of {budget}: the smallest needs "
        f"{min(needed) / 1e6:.6g} MB; raise the budget to that"
    )
