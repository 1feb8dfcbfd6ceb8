"""The passes of every method, in order: from a joint graph to a target's operators."""

from collections.abc import Sequence

from pockmobile import passes as p
from pockmobile.errors import UsageError
from pockmobile.graph import JointGraph
from pockmobile.graph.columns import WHOLE
from pockmobile.graph.liveness import Liveness
from pockmobile.plan import UpdatePlan
from pockmobile.targets import Target


def pruning(plan: UpdatePlan) -> Sequence[p.Pass]:
    """Freezes what the plan does not train, and drops what that leaves without use."""
    return [p.Canonicalize(), p.ApplyPlan(plan), p.Prune()]


def rounding(target: Target) -> Sequence[p.Pass]:
    """Brings gradients in float16, where the target computes them so, to the optimizer."""
    scale = target.gradient_scale
    return [] if scale is None else [p.RoundGradients(scale)]


def chunk_width(target: Target, asked: int | None) -> int | None:
    """Returns how many of the classes that a label is chosen among are computed at once.

    Raises:
        UsageError: some were asked for, where gradients are computed in float16.
    """
    if target.gradient_scale is None:
        return asked
    if asked:
        # A label is found by its number, and float16 has whole numbers up to 2,048.
        raise UsageError(
            f"--loss-chunk {asked} needs a target that computes in float32, found "
            f"{target.name} in float16; leave it out"
        )
    return WHOLE


def simplification() -> Sequence[p.Pass]:
    """Rewrites plain ATen into less of it, whatever the target."""
    return [
        p.FoldConstants(),
        p.RemoveNoops(),
        p.EliminateCommon(),
        p.ScatterLast(),
        p.FoldScale(),
        p.MaskFromOutput(),
    ]


def cleaning() -> Sequence[p.Pass]:
    """Drops what a target's rewrites leave behind."""
    return [
        p.Canonicalize(),
        p.FoldConstants(),
        p.RemoveNoops(),
        p.EliminateCommon(),
        p.Prune(),
    ]


def rewriting(target: Target) -> Sequence[p.Pass]:
    """From plain ATen to the target's operators."""
    return [*simplification(), *target.passes(), *cleaning()]


def arranging(target: Target, beside: JointGraph | None = None) -> Sequence[p.Pass]:
    """Lowers what is alive at once among the operators that will really run.

    It need be no lower than that of another graph that runs `beside`.
    """
    if not target.saves_memory:
        return [p.ReorderForMemory()]
    views, overwritten = target.views, target.overwritten
    limit = Liveness.of(beside, views, overwritten).peak if beside else 0
    return [
        p.ReorderForMemory(),
        p.ScaleAgain(views, overwritten),
        p.SplitBatch(limit, views, overwritten),
    ]
