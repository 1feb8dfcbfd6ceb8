"""What an analysis found, with the evidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import final

from pockmobile.cost import Estimate
from pockmobile.plan import UpdatePlan
from pockmobile.search import Budget, Cost, SearchResult
from pockmobile.sensitivity import Outcome, Sensitivity
from pockmobile.space import Selection, UpdateSpace


@final
@dataclass(frozen=True)
class Evidence:
    """A plan that was really fine-tuned: its predicted cost, and what it reached."""

    name: str
    selection: Selection
    cost: Cost
    estimate: Estimate
    outcomes: tuple[Outcome, ...]

    @property
    def metric(self) -> float:
        """The mean of what it reached; higher is better."""
        return fmean(outcome.metric for outcome in self.outcomes)


@final
@dataclass(frozen=True)
class Findings:
    """The plan found, and why.

    `chosen` is the best of the `evidence` that fits the budget; `shown_bytes` is what its
    exported program needs for a training step. `shapes` are those of the parameters.
    """

    plan: UpdatePlan
    chosen: Evidence
    shown_bytes: int
    evidence: tuple[Evidence, ...]
    space: UpdateSpace
    shapes: Mapping[str, tuple[int, ...]]
    sensitivity: Sensitivity
    result: SearchResult
    budget: Budget
    num_train: int
    num_eval: int
    seconds: float
