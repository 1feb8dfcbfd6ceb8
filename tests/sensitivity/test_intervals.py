"""Student's t and the pooled interval against known values."""

import pytest

from pockmobile.sensitivity.intervals import pooled_half_width, student_t


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (4, 2.776), (5, 2.571), (8, 2.306), (30, 2.042), (1000, 1.962)],
)
def test_student_t(freedom: int, expected: float) -> None:
    assert student_t(freedom) == pytest.approx(expected, abs=4e-3)


def test_spread_is_pooled_around_each_mean() -> None:
    # Two rows of variance 2 each, whatever their means: 2 degrees of freedom.
    width = pooled_half_width([[1.0, 3.0], [101.0, 103.0]])
    assert width == pytest.approx(4.303 * (2.0 / 2) ** 0.5)
    assert pooled_half_width([]) == 0.0


def test_what_does_harm_says_nothing_of_the_rest() -> None:
    steady = [[1.0 + row, 3.0 + row] for row in range(12)]
    wild = [[-10.0 * row, -100.0] for row in range(12)]
    assert pooled_half_width([*wild, *steady]) == pytest.approx(student_t(12))
