"""Memory seen by other axes, which copies nothing."""

import pytest
import torch
from torch import Tensor

from pockmobile.targets.xnnpack.layout import (
    NHWC,
    Value,
    regrouped,
    regrouped_permutation,
    viewed,
)
from tests.targets.running import check_on_xnnpack


@pytest.mark.parametrize(
    ("part", "whole", "seen", "expected"),
    [
        ((8, 6, 6, 192), (8, 6, 6, 192), (288, 192), (288, 192)),
        ((1, 1, 1, 192), (8, 6, 6, 192), (288, 192), (1, 192)),
        ((288, 1), (288, 192), (8, 6, 6, 192), (8, 6, 6, 1)),
        ((192, 1, 1, 1), (192, 32, 1, 1), (192, 32), (192, 1)),
        # One axis broadcasts along a part of what it was.
        ((8, 1, 1, 192), (8, 6, 6, 192), (288, 192), None),
    ],
)
def test_what_broadcasts_is_seen_by_other_axes(
    part: tuple[int, ...],
    whole: tuple[int, ...],
    seen: tuple[int, ...],
    expected: tuple[int, ...] | None,
) -> None:
    assert regrouped(part, whole, seen) == expected


@pytest.mark.parametrize(
    ("perm", "storage", "seen", "expected"),
    [
        ((1, 0), (288, 192), (8, 6, 6, 192), [3, 0, 1, 2]),
        ((0, 3, 1, 2), (8, 6, 6, 192), (8, 36, 192), [0, 2, 1]),
        # The two axes that lie as one are parted.
        ((1, 0, 2), (8, 6, 192), (48, 192), None),
    ],
)
def test_a_permutation_moves_whole_axes(
    perm: tuple[int, ...],
    storage: tuple[int, ...],
    seen: tuple[int, ...],
    expected: list[int] | None,
) -> None:
    assert regrouped_permutation(perm, storage, seen) == expected


def test_products_views_and_sums_agree_about_axes() -> None:
    torch.manual_seed(0)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        rows = x.permute(0, 2, 3, 1).reshape(-1, 6)
        y = (rows @ weight.t()).reshape(2, 3, 4, 5).permute(0, 3, 1, 2)
        z = (y + bias.reshape(1, 5, 1, 1)).clamp(0.0, 6.0)
        back = z.permute(0, 2, 3, 1).reshape(-1, 5)
        return {
            "y": z,
            "bias": z.sum([0, 2, 3]),
            "weight": back.t() @ rows,
            "rows": (back @ weight).softmax(-1).sum(1),
        }

    check_on_xnnpack(function, torch.randn(2, 6, 3, 4), torch.randn(5, 6), torch.randn(5))


def test_a_clamp_passes_gradients_strictly_between_its_bounds() -> None:
    x = torch.tensor([-1.0, 0.0, 1e-30, 3.0, 6.0 - 2**-21, 6.0, 7.0]).repeat(3, 1)
    back = torch.ops.aten.hardtanh_backward.default
    check_on_xnnpack(lambda grad, x: back(grad, x, 0.0, 6.0), torch.randn(3, 7), x)


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
