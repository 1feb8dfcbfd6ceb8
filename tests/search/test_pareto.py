"""A front holds what nothing else beats, and nothing else."""

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given, settings

from pockmobile.search import Candidate, Cost
from pockmobile.search.pareto import pareto_front


def memory(candidate: Candidate) -> float:
    return candidate.cost.memory_bytes


def test_keeps_what_is_not_dominated() -> None:
    points = [(3, 5.0), (1, 1.0), (2, 1.0), (2, 3.0), (4, 4.0), (2, 2.0)]
    plans = [Candidate((i,), gain, Cost(cost, 0.0)) for i, (cost, gain) in enumerate(points)]
    assert [one.selection for one in pareto_front(plans, memory)] == [(1,), (3,), (0,)]
    assert pareto_front([], memory) == ()


def test_of_equals_the_first_selection_stands() -> None:
    plans = [Candidate((number,), 1.0, Cost(1, 0.0)) for number in (2, 1, 3)]
    assert pareto_front(plans, memory) == (plans[1],)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_each_plan_is_on_the_front_or_beaten_by_it(points: list[tuple[int, int]]) -> None:
    plans = [Candidate((i,), gain, Cost(cost, 0.0)) for i, (cost, gain) in enumerate(points)]
    front = pareto_front(plans, memory)
    for one in plans:
        assert any(f.gain >= one.gain and memory(f) <= memory(one) for f in front)
    for before, after in pairwise(front):
        assert before.gain < after.gain
        assert memory(before) < memory(after)
