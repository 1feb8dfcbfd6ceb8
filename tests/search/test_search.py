"""Search finds the optimum where it can be enumerated, is the same twice, and is quick."""

import math
import os
import random
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pockmobile.errors import PlanError, UsageError
from pockmobile.search import Budget, Cost, SearchResult, enumerate_best, search
from pockmobile.space import Selection
from tests.search.spaces import Instance, instance, space_of


def run(
    found: Instance, budget: Budget, *, seed: int = 0, max_enumerated: int = 10_000
) -> SearchResult:
    return search(
        found.space,
        found.contributions,
        found.cost,
        budget,
        seed=seed,
        max_enumerated=max_enumerated,
    )


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    memory=st.none() | st.floats(0.2, 0.9),
    step_ratio=st.none() | st.floats(0.4, 0.95),
    has_head=st.booleans(),
)
def test_evolution_finds_the_optimum(
    seed: int,
    sizes: list[int],
    memory: float | None,
    step_ratio: float | None,
    has_head: bool,
) -> None:
    found = instance(seed, sizes, has_head=has_head)
    num_bytes = round(memory * found.full.memory_bytes) if memory is not None else None
    if num_bytes is None and step_ratio is None:
        num_bytes = found.full.memory_bytes // 2
    budget = Budget(num_bytes, step_ratio)
    try:
        best = enumerate_best(found.space, found.contributions, found.cost, budget)
    except PlanError:  # Nothing fits, for the one as for the other.
        with pytest.raises(PlanError):
            run(found, budget, max_enumerated=0)
        return
    searched = run(found, budget, max_enumerated=0).best[0]
    assert searched.gain == pytest.approx(best.gain)
    assert searched.cost.fits(budget)


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_optimum_of_a_larger_space(seed: int) -> None:
    found = instance(seed, [4, 5, 5, 5, 5, 3, 2])
    budget = Budget(found.full.memory_bytes // 2, 0.8)
    best = enumerate_best(found.space, found.contributions, found.cost, budget)
    assert run(found, budget, max_enumerated=0).best[0].gain == pytest.approx(best.gain)


@pytest.mark.parametrize("seed", range(10))
def test_finds_the_optimum_where_costs_sometimes_fall(seed: int) -> None:
    found = instance(seed, [4, 3, 4, 3, 4])
    rng = random.Random(seed)
    factors = [[rng.uniform(0.97, 1.1) for _ in range(5)] for _ in range(5)]

    def cost(selection: Selection) -> Cost:
        """Each pair of trained layers changes the cost, a few for the better."""
        trained = [index for index, number in enumerate(selection) if number]
        factor = math.prod(factors[i][j] for i in trained for j in trained if j < i)
        plain = found.cost(selection)
        return Cost(round(plain.memory_bytes * factor), plain.step_ratio * factor)

    tangled = Instance(found.space, found.contributions, cost)
    budget = Budget(tangled.full.memory_bytes // 2, 0.8)
    best = enumerate_best(tangled.space, tangled.contributions, cost, budget)
    assert run(tangled, budget, max_enumerated=0).best[0].gain == pytest.approx(best.gain)


def test_a_small_space_is_enumerated() -> None:
    found = instance(2, [3, 3, 3])
    budget = Budget(found.full.memory_bytes // 2)
    result = run(found, budget)
    assert result.best[0] == enumerate_best(
        found.space, found.contributions, found.cost, budget
    )
    helpful = [
        sum(found.contributions[option.name] > 0 for option in layer.options)
        for layer in found.space.layers
    ]
    assert result.num_evaluated == (helpful[0] + 1) * (helpful[1] + 1) * (helpful[2] + 1)


def test_is_the_same_twice_under_a_seed() -> None:
    found = instance(4, [5] * 25)
    budget = Budget(found.full.memory_bytes // 3, 0.6)
    assert run(found, budget, seed=7) == run(found, budget, seed=7)


def test_is_the_same_in_every_process() -> None:
    code = (
        "from tests.search.test_search import *; found = instance(4, [5] * 12); "
        "print(run(found, Budget(found.full.memory_bytes // 3, 0.6)))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != b""


def test_a_model_of_usual_size_takes_few_evaluations() -> None:
    found = instance(1, [5] * 55)
    asked: list[Selection] = []

    def cost(selection: Selection) -> Cost:
        asked.append(selection)
        return found.cost(selection)

    lines: list[str] = []
    budget = Budget(found.full.memory_bytes // 4, 0.55)
    result = search(found.space, found.contributions, cost, budget, progress=lines.append)
    assert result.num_evaluated == len(asked) == len(set(asked)) < 12_000
    assert lines[0].startswith("greedy: gain ")
    assert lines[1].startswith("knapsack: gain ")
    assert lines[-1].startswith("done: gain ")
    assert all(one.cost.fits(budget) for one in result.best)
    assert len({tuple(n > 0 for n in one.selection) for one in result.best}) == 4
    assert all(one.gain >= 0.95 * result.best[0].gain for one in result.best)


def test_fronts_reach_beyond_the_budget() -> None:
    found = instance(1, [5] * 25)
    budget = Budget(found.full.memory_bytes // 8)
    result = run(found, budget)
    base = (0,) * 25
    for front in (result.front_memory, result.front_time):
        assert front[0].selection == base
        assert front[-1].gain > 3 * result.best[0].gain
        assert [one.gain for one in front] == sorted(one.gain for one in front)
    assert result.best[0] in result.front_memory


def test_nothing_that_does_not_help_is_ever_trained() -> None:
    found = instance(3, [5] * 12)
    result = run(found, Budget(memory_bytes=10**9))
    for one in (*result.best, *result.front_memory, *result.front_time):
        options = found.space.chosen(one.selection)
        assert all(found.contributions[option.name] > 0 for option in options)


@pytest.mark.parametrize("max_enumerated", [0, 10_000])
def test_where_nothing_helps_the_base_alone_is_best(max_enumerated: int) -> None:
    space = space_of([2, 2])
    flat = Cost(1, 0.1)
    result = search(
        space, {"layer0 bias": -1.0}, lambda _: flat, Budget(1), max_enumerated=max_enumerated
    )
    assert [one.selection for one in result.best] == [(0, 0)]
    assert result.front_memory == result.front_time == result.best


def test_too_many_to_enumerate() -> None:
    found = instance(1, [5] * 30)
    with pytest.raises(UsageError, match="selections, too many to enumerate"):
        enumerate_best(found.space, found.contributions, found.cost, Budget(step_ratio=1.0))
