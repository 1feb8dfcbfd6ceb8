"""The plans to measure are good, and not all alike."""

from pockmobile.search import Budget, Candidate, Cost, search
from pockmobile.search.variety import choose_various
from pockmobile.space import Selection
from tests.search.spaces import space_of


def plan(gain: float, *selection: int) -> Candidate:
    return Candidate(selection, gain, Cost(1, 0.1))


def chosen(plans: list[Candidate], count: int) -> list[Selection]:
    return [one.selection for one in choose_various(plans, count)]


def test_near_plans_that_train_other_layers_come_before_alike_ones() -> None:
    plans = [
        plan(1.00, 1, 1, 0, 0),
        plan(0.99, 2, 1, 0, 0),  # The same layers.
        plan(0.98, 1, 1, 1, 0),
        plan(0.97, 0, 1, 1, 1),
        plan(0.50, 0, 0, 1, 1),  # More unlike than all, but not near.
    ]
    assert chosen(plans, 1) == [(1, 1, 0, 0)]
    assert chosen(plans, 2) == [(1, 1, 0, 0), (0, 1, 1, 1)]
    assert chosen(plans, 3) == [(1, 1, 0, 0), (1, 1, 1, 0), (0, 1, 1, 1)]


def test_then_the_best_of_the_rest_follow() -> None:
    plans = [plan(1.0, 2, 0), plan(0.9, 1, 0), plan(0.8, 0, 1), plan(0.0, 0, 0)]
    assert chosen(plans, 3) == [(2, 0), (1, 0), (0, 1)]
    assert chosen(plans, 9) == [(2, 0), (1, 0), (0, 1), (0, 0)]
    assert chosen([], 3) == []


def test_each_differs_from_every_chosen_one() -> None:
    plans = [plan(1.0, 1, 1, 0), plan(1.0, 0, 0, 1), plan(1.0, 0, 0, 2), plan(1.0, 0, 1, 1)]
    assert chosen(plans, 3) == [(1, 1, 0), (0, 0, 1), (0, 1, 1)]


def test_a_layer_that_gains_much_alone_is_in_a_plan_that_is_measured() -> None:
    """Layer 0 is dear: it leaves no room but for one of the others."""
    sizes = [90, 20, 20, 20, 20, 20]
    contributions = {"layer0 bias": 0.9} | {f"layer{n} bias": 0.3 for n in range(1, 6)}

    def cost(selection: Selection) -> Cost:
        return Cost(10 + sum(size * n for size, n in zip(sizes, selection, strict=True)), 0.1)

    for max_enumerated in (0, 10_000):
        found = search(
            space_of([1] * 6), contributions, cost, Budget(memory_bytes=120), num_best=2,
            max_enumerated=max_enumerated,
        ).best  # fmt: skip
        assert found[0].selection == (0, 1, 1, 1, 1, 1)
        assert [one.selection[0] for one in found] == [0, 0, 1]
        assert found[-1].cost.memory_bytes == 120
