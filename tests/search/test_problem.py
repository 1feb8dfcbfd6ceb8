"""What is worth selecting, what costs are asked for, and what fits no budget."""

import pytest

from pockmobile.errors import PlanError
from pockmobile.search import Budget, Cost
from pockmobile.search.problem import Problem
from pockmobile.space import Selection
from tests.search.spaces import space_of

ROOMY = Budget(memory_bytes=1000)


def summed(selection: Selection) -> Cost:
    return Cost(10 + sum(selection), 0.1 + 0.1 * sum(selection))


def test_options_that_do_not_help_are_no_choice() -> None:
    gains = {"layer0 bias": 0.1, "layer0 1/8": 0.0, "layer1 bias": -0.1, "layer1 1/8": 0.2}
    gains["layer2 bias"] = float("nan")
    problem = Problem(space_of([3, 2, 1]), gains, summed, ROOMY)
    assert problem.choices == ((1,), (2,), ())
    assert problem.layers == (0, 1)
    assert problem.num_selections == 4


def test_each_selection_is_costed_once() -> None:
    asked: list[Selection] = []

    def cost(selection: Selection) -> Cost:
        asked.append(selection)
        return summed(selection)

    problem = Problem(space_of([2, 2]), {"layer0 bias": 1.0, "layer1 1/8": 0.5}, cost, ROOMY)
    first = problem.evaluate((1, 2))
    assert problem.evaluate((1, 2)) is first
    assert (first.gain, first.cost) == (1.5, summed((1, 2)))
    assert asked == [(0, 0), (1, 2)]
    assert problem.num_evaluated == 2


def test_shares_are_of_what_the_base_leaves() -> None:
    problem = Problem(space_of([2]), {"layer0 bias": 1.0}, summed, Budget(20, 0.3))
    memory, time = problem.used(problem.evaluate((1,)))
    assert memory == pytest.approx(0.1)
    assert time == pytest.approx(0.5)
    no_limit = Problem(space_of([2]), {"layer0 bias": 1.0}, summed, Budget(20))
    assert no_limit.used(no_limit.evaluate((1,)))[1] == 0


def test_a_base_that_takes_all_leaves_finite_shares() -> None:
    problem = Problem(space_of([2]), {"layer0 bias": 1.0}, summed, Budget(10))
    assert 1e3 < problem.used(problem.evaluate((1,)))[0] < float("inf")


def test_a_budget_that_nothing_fits_names_the_smallest_plan() -> None:
    with pytest.raises(PlanError) as error:
        Problem(space_of([2]), {"layer0 bias": 1.0}, summed, Budget(9, 0.5))
    assert str(error.value) == (
        "no plan fits a budget of 9e-06 MB and 0.5 of a full step's time: the smallest plan "
        "(the base alone: head.weight) needs 1e-05 MB and 0.1 of a full step's time; raise "
        "the budget to at least that, or make the batch smaller"
    )


def test_without_a_head_the_smallest_plan_is_one_option() -> None:
    gains = {"layer0 1/8": 1.0, "layer1 bias": 1.0}
    space = space_of([2, 2], has_head=False)
    with pytest.raises(PlanError, match=r"\(one option alone\) needs 1.1e-05 MB and 0.2 of"):
        Problem(space, gains, summed, Budget(10))
    problem = Problem(space, gains, summed, Budget(11))
    assert [one.selection for one in problem.ranked()] == [(0, 1)]
    assert [one.selection for one in problem.plans] == [(2, 0), (0, 1)]


def test_without_a_head_something_must_contribute() -> None:
    with pytest.raises(PlanError, match="nothing to train: the model has no head of its own"):
        Problem(space_of([2], has_head=False), {"layer0 bias": 0.0}, summed, ROOMY)
