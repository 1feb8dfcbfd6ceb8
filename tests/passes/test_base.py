"""The runner: verifies, reports, and names the pass at fault."""

from dataclasses import dataclass
from typing import final

import pytest
import torch

from pockmobile.errors import PlanError
from pockmobile.graph import JointGraph
from pockmobile.passes import Pass, Prune, run_passes
from tests.passes.graphs import trace

X = {"x": torch.randn(2)}


@final
@dataclass(frozen=True)
class Break(Pass):
    """Leaves a node without a value."""

    depth: int = 1
    name = "break"

    def apply(self, graph: JointGraph) -> JointGraph:
        broken = graph.copy()
        for node in broken.nodes:
            node.meta.pop("val", None)
        return broken


@final
@dataclass(frozen=True)
class Refuse(Pass):
    """Finds a mistake of the user."""

    name = "refuse"

    def apply(self, graph: JointGraph) -> JointGraph:
        raise PlanError("no such parameter")


def test_a_run_says_what_each_pass_did() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        x.exp()
        return x + 1

    told: list[str] = []
    _, runs = run_passes(trace(function, X), [Prune(), Prune()], told.append)
    assert [(run.name, run.num_before, run.num_after) for run in runs] == [
        ("prune", 2, 1),
        ("prune", 1, 1),
    ]
    assert told == ["prune", "prune"]
    assert all(run.options == {} and run.seconds >= 0 for run in runs)


def test_fields_are_options() -> None:
    assert Break(depth=3).options() == {"depth": 3}


def test_a_broken_result_names_the_pass_and_those_before_it() -> None:
    with pytest.raises(
        AssertionError, match=r"pass break failed \(passes before it: prune\): .*no value"
    ):
        run_passes(trace(lambda x: x + 1, X), [Prune(), Break()])


def test_a_mistake_of_the_user_keeps_its_error() -> None:
    with pytest.raises(PlanError, match=r"^no such parameter$"):
        run_passes(trace(lambda x: x + 1, X), [Refuse()])
