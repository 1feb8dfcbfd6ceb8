"""How views of values that lie otherwise than the graph says are told."""

import pytest

from pockmobile.targets.xnnpack.layout import NHWC, Value, viewed


@pytest.mark.parametrize(
    ("storage", "order", "shape", "expected"),
    [
        # What will stand between the pixels lies between them.
        ((2, 3, 4, 5), NHWC, (2, 5, 3, 1, 4, 1), (0, 2, 3, 4, 5, 1)),
        # Channels stay innermost where a map of one pixel is made of them.
        ((2, 5), (0, 1), (2, 5, 1, 1), (0, 2, 3, 1)),
        ((2, 5), (0, 1), (1, 2, 5), (0, 1, 2)),
        # Dimensions that merge must lie beside one another.
        ((2, 3, 4, 5), NHWC, (2, 60), None),
        ((2, 3, 4, 5), NHWC, (2, 5, 12), (0, 2, 1)),
    ],
)
def test_dimensions_of_size_one_stay_beside_the_one_before(
    storage: tuple[int, ...],
    order: tuple[int, ...],
    shape: tuple[int, ...],
    expected: tuple[int, ...] | None,
) -> None:
    found = viewed(Value(0, storage, order), shape)
    assert (found and found[1]) == expected
    assert found is None or found[0] == tuple(shape[dim] for dim in found[1])
