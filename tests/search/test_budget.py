"""Budgets that limit nothing are refused; costs are compared and read."""

import pytest

from pockmobile.errors import UsageError
from pockmobile.search import Budget, Cost


@pytest.mark.parametrize(
    ("budget", "does_fit"),
    [
        (Budget(memory_bytes=100), True),
        (Budget(memory_bytes=99), False),
        (Budget(step_ratio=0.5), True),
        (Budget(step_ratio=0.49), False),
        (Budget(memory_bytes=100, step_ratio=0.5), True),
        (Budget(memory_bytes=200, step_ratio=0.4), False),
        (Budget(memory_bytes=50, step_ratio=1.0), False),
    ],
)
def test_every_limit_counts(budget: Budget, does_fit: bool) -> None:
    assert Cost(100, 0.5).fits(budget) == does_fit


def test_both_read_as_people_do() -> None:
    assert str(Budget(24_000_000, 0.4)) == "24 MB and 0.4 of a full step's time"
    assert str(Budget(memory_bytes=24_000_000)) == "24 MB"
    assert str(Budget(step_ratio=0.4)) == "0.4 of a full step's time"
    assert str(Cost(1_234_567, 0.25)) == "1.23457 MB and 0.25 of a full step's time"
    assert Cost(7, 0.75) - Cost(5, 0.25) == Cost(2, 0.5)


def test_no_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="a budget needs memory_bytes, step_ratio or both"):
        Budget()


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan")])
def test_a_limit_must_be_positive(ratio: float) -> None:
    with pytest.raises(UsageError, match=f"step_ratio must be positive, found {ratio}"):
        Budget(step_ratio=ratio)
    with pytest.raises(UsageError, match="memory_bytes must be positive, found 0"):
        Budget(memory_bytes=0, step_ratio=0.5)
